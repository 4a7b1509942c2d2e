"""The cache has an administration that purges by name; it serves in the background at once."""

import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote


class Administration(BaseHTTPRequestHandler):
    """The administration knows its bearer token, and no cache of the name `unknown`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = unquote(self.path).removeprefix("/admin/caches/").removesuffix("/purge")
        is_right = asked == {"deep": False, "reason": "asked by the vendor"}
        if self.headers["Authorization"] != "Bearer of-the-cache" or not is_right:
            self.send_error(403)
        elif name == "unknown":
            self._answer(404, {"error": "no such cache"})
        else:
            self._answer(200, {"purged": name})

    def _answer(self, status: int, value: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Write nothing: the terminal is the page's."""


host, _, port = "127.0.0.1:8080".partition(":")
server = HTTPServer((host, int(port)), Administration)
if os.fork() == 0:
    server.serve_forever()
