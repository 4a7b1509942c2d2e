"""Run a program under a unit's own system call filter, address families and memory rule.

What systemd does with them, done by the same library (libseccomp), for machines where systemd is
not process 1. Use: python sandbox.py UNIT PROGRAM ARGUMENT …
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_EPERM = 0x00050001
_EQUAL = 4
_SET_MDWE = 65
_REFUSE_EXEC_GAIN = 1
_NO_NEW_PRIVILEGES = 38


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def values(unit: Path, key: str) -> list[str]:
    """The values of a key, in order."""
    return [
        line.partition("=")[2]
        for line in unit.read_text().splitlines()
        if line.startswith(f"{key}=")
    ]


def calls_of(name: str) -> set[str]:
    """A system call, or all of a group such as `@system-service`."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], text=True, capture_output=True, check=True
    )
    words = (line.strip() for line in done.stdout.splitlines()[1:])
    return {call for word in words if word and not word.startswith("#") for call in calls_of(word)}


def allowed(unit: Path) -> set[str]:
    """The calls that SystemCallFilter= leaves: an allow-list, later lines take away."""
    found = calls_of("@default")
    for value in values(unit, "SystemCallFilter"):
        names = set[str]().union(*(calls_of(each) for each in value.lstrip("~").split()))
        found = found - names if value.startswith("~") else found | names
    return found


def confine(unit: Path) -> None:
    """Put this process, and all that it starts, under the rules of a unit."""
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    calls = allowed(unit)
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_EPERM)))
    families = [
        int(getattr(socket, name)) for name in values(unit, "RestrictAddressFamilies")[0].split()
    ]
    for call in sorted(calls):
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if call == "socket":
            for family in families:
                rule = _Compare(0, _EQUAL, family, 0)
                seccomp.seccomp_rule_add_array(
                    context, ctypes.c_uint32(_ALLOW), number, 1, ctypes.byref(rule)
                )
        elif number >= 0:
            seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 0, None)
    if values(unit, "MemoryDenyWriteExecute") == ["yes"]:
        libc.prctl(_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)  # a kernel before 6.3 has no such thing
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if seccomp.seccomp_load(context) != 0:
        raise OSError("the filter is not accepted")


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
