"""What all tests share: long ones are left out unless somebody asks."""

from __future__ import annotations

import pytest

LEFT_OUT = "not big and not chaos and not host"


def pytest_configure(config: pytest.Config) -> None:
    """`-m` on the command line decides alone; without one, `big`, `chaos` and `host` stay out.

    Workers of xdist inherit the expression of the process that started them, not its arguments:
    an explicit empty one becomes one that is true of every test.
    """
    given = any(str(argument).startswith("-m") for argument in config.invocation_params.args)
    if given and not config.option.markexpr:
        config.option.markexpr = "big or not big"
    elif not config.option.markexpr:
        config.option.markexpr = LEFT_OUT
