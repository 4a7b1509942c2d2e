"""The proxy before the server speaks TLS, with a certificate of a CA of its own.

It ends connections of both sides when one of them ends, and serves in the background at once.
"""

import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.support.certificates import Authority


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes, to the end of the connection."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def answer(plain: socket.socket) -> None:
    """Join a client with the server."""
    host, _, port = "127.0.0.1:8484".partition(":")
    try:
        client = context.wrap_socket(plain, server_side=True)
    except OSError:
        return
    server = socket.create_connection((host, int(port)))
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)


authority = Authority(Path("ca"))
context = authority.serving(authority.issue("front", ["localhost"]))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1].rpartition(":")[2])))
if os.fork() == 0:
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=answer, args=(accepted,), daemon=True).start()
