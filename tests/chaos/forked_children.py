"""Children are processes that a test may kill, forked from a parent that has done their imports.

Run as a program, the parent reads one job a line, forks, and prints how the child ended. The child
is a process of its own with real files and a real SIGKILL; only the second that it would need to
start is saved. Failpoints are armed in the child.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Any, NamedTuple

OPERATIONS = "tests.chaos.operations"


class Outcome(NamedTuple):
    """The end of a child."""

    answer: Any
    """None when it was killed."""
    signal: int
    code: int
    said: str
    """Its standard error."""


class ForkedChildren:
    """The parent, seen from the tests. One child at a time."""

    def __init__(self, *, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
        )

    def run(self, job: dict[str, Any], env: dict[str, str] | None = None) -> Outcome:
        """Have a child do a job; return how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"env": env or {}, "job": job}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the parent has ended"
        return Outcome(**json.loads(line))

    def succeed(self, job: dict[str, Any], env: dict[str, str] | None = None) -> Any:
        """Return the answer of a child that must not be killed."""
        outcome = self.run(job, env)
        assert (outcome.signal, outcome.code) == (0, 0), f"{job}\n{outcome.said}"
        return outcome.answer

    def close(self) -> None:
        """End the parent."""
        self._process.communicate()


def _serve() -> None:
    importlib.import_module(OPERATIONS)
    for line in sys.stdin:
        message = json.loads(line)
        with tempfile.TemporaryFile() as said:
            print(json.dumps(_fork_child(message["job"], message["env"], said)), flush=True)


def _fork_child(job: dict[str, Any], env: dict[str, str], said: Any) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(job, env, said.fileno(), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    said.seek(0)
    return {
        "answer": json.loads(answer) if answer else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "code": 0 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
        "said": said.read().decode(errors="replace"),
    }


def _run_child(job: dict[str, Any], env: dict[str, str], said: int, writing: int) -> None:
    """Do the job in the child; never return to the loop of the parent."""
    try:
        os.dup2(said, 2)
        os.dup2(said, 1)
        os.environ.update(env)
        importlib.reload(importlib.import_module("arc_runtime.failpoints"))  # arms them
        importlib.import_module("tests.support.statement_kills").install()
        module = importlib.import_module(job.get("module", OPERATIONS))
        answer = asyncio.run(module.perform(job))
        os.write(writing, json.dumps(answer).encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
