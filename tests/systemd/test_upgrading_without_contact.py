"""Upgrades to a release that does not work, and upgrades while the server is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.arc_host import AGENT, SERVER, ArcHost
from tests.support.arc_releases import PutRelease
from tests.support.booted_root import CommandEnded

pytestmark = pytest.mark.systemd

WITHIN_SECONDS: Final = 20
"""An agent without contact is ready 10 s after its start, which takes some on a busy machine."""


@pytest.fixture(autouse=True)
def _in_contact(host: ArcHost) -> Iterator[None]:
    """Let every test begin with a server at work, and with an agent in contact."""
    host.root.until_status(AGENT, "last contact")
    yield
    host.root.run("systemctl", "start", SERVER)


@pytest.mark.parametrize(
    ("name", "fault"),
    [("broken", "was not ready"), ("deaf", "had no contact with the server")],
)
def test_a_release_that_does_not_work_is_taken_back(
    host: ArcHost, put_release: PutRelease, name: str, fault: str
) -> None:
    version = host.current()

    with pytest.raises(CommandEnded) as ended:
        host.upgrade("--from", put_release(name), "--ready-within", f"{WITHIN_SECONDS}s")

    assert ended.value.code == 1
    assert (
        f"{fault} within {WITHIN_SECONDS} s; version {version[9:]} is back" in ended.value.printed
    )
    assert (host.current(), host.release()) == (version, "0.1.0")
    assert host.invoke("arc.ping")["pong"] is True


def test_an_upgrade_while_the_server_is_away_is_not_taken_back(
    host: ArcHost, put_release: PutRelease
) -> None:
    host.root.run("systemctl", "stop", SERVER)
    host.root.until_status(AGENT, "no contact with")

    host.upgrade("--from", put_release("good"), "--ready-within", f"{WITHIN_SECONDS}s")

    assert host.release() == "0.1.7"
    assert "no contact with" in host.root.show(AGENT, "StatusText")
    host.upgrade("--back")
