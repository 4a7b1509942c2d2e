"""The launcher sets limits, becomes another user, and then becomes the program.

The agent starts it as `python -SIE launcher.py FD ARGV…`: between fork and exec of a process with
threads, no Python code may run. FD is a socket, which the program does not inherit. The launcher
reads its instructions from it and answers `+`, followed by the error number if the program cannot
be started.
"""

import json
import os
import resource
import socket
import sys


def drop_ambient_capabilities() -> None:
    """Drop the capabilities that the agent's unit gives it (AmbientCapabilities=).

    They would outlive the execution, and a change of user that is not from root: with CAP_SETUID
    the program could become any user. Raises OSError; the program is then not started.
    """
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapAmb:"))
    if int(line.split()[1], 16) == 0:
        return
    import ctypes  # slow, and most agents have no ambient capabilities

    if ctypes.CDLL(None, use_errno=True).prctl(47, 4, 0, 0, 0):  # PR_CAP_AMBIENT, …_CLEAR_ALL
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Become the program."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    given = b""
    while part := channel.recv(65536):
        given += part
    spec = json.loads(given)
    argv = sys.argv[2:]
    channel.sendall(b"+")
    try:
        for name, value in spec["rlimits"].items():
            number = getattr(resource, name)
            _, hard = resource.getrlimit(number)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (most, most))
        if spec["user"] is not None:
            uid, gid, groups = spec["user"]
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        drop_ambient_capabilities()
        os.execvpe(argv[0], argv, spec["env"])  # noqa: S606  # without a shell, on purpose
    except OSError as error:
        channel.sendall(str(error.errno).encode())
    except (ValueError, MemoryError, StopIteration):
        channel.sendall(b"22")
    os._exit(127)


if __name__ == "__main__":
    main()
