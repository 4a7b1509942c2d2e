"""Shows the helps of a program, one after another, in one process: a screen of all of them.

python -m tests.support.all_helps arc_server.cli.main '' 'token create' …
"""

from __future__ import annotations

import contextlib
import importlib
import sys


def main() -> None:
    """Run the program of a module with `--help` behind each command line."""
    module, *lines = sys.argv[1:]
    program = importlib.import_module(module)
    name = module.partition(".")[0].replace("_", "-")
    for line in lines:
        words = [*line.split(), "--help"]
        sys.stdout.write(f"\n$ {' '.join([name, *words])}\n")
        sys.argv = [name, *words]
        with contextlib.suppress(SystemExit):
            program.main()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
