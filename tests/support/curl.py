"""A stand-in for curl, for machines without it: the options that docs/protocol.md uses, no others.

Run as a script. An option that the page does not use is an error, so that the page and this file
cannot part unnoticed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT_SECONDS = 60.0


def main() -> None:
    """Send one request; write its answer, and then what `-w` asks for."""
    parser = argparse.ArgumentParser(prog="curl", add_help=False, allow_abbrev=False)
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-S", action="store_true")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-T", dest="upload", type=Path)
    parser.add_argument("-o", dest="output", type=Path)
    parser.add_argument("-w", dest="epilogue", default="")
    parser.add_argument("url")
    given = parser.parse_args()

    body = given.upload.read_bytes() if given.upload else (given.data or "").encode() or None
    method = given.method or ("PUT" if given.upload else "POST" if body is not None else "GET")
    headers = dict(header.split(": ", 1) for header in given.headers)
    request = Request(given.url, body, headers, method=method)
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_SECONDS) as answer:
            status, data = answer.status, answer.read()
    except HTTPError as error:
        status, data = error.code, error.read()

    if given.output:
        given.output.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)
    epilogue = given.epilogue.replace("%{http_code}", str(status)).replace("\\n", "\n")
    sys.stdout.buffer.write(epilogue.encode())


if __name__ == "__main__":
    main()
