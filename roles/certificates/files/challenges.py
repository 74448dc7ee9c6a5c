#!/usr/bin/python3
"""Answers what a certificate authority asks on port 80 (RFC 8555 §8.3) as the api of this host says, and nothing else.

The socket is systemd's. `challenges.py http://127.0.0.1:8000`
"""

import http.server
import re
import socket
import sys
import threading
import urllib.error
import urllib.request

PREFIX = "/.well-known/acme-challenge/"
TIMEOUT = 10  # seconds, for the client and for api
MOST = 32  # clients at a time


class Handler(http.server.BaseHTTPRequestHandler):
    """One request of a connection."""

    api = ""
    timeout = TIMEOUT
    server_version = "remails"
    sys_version = ""

    def do_GET(self) -> None:
        """RFC 8555 §8.3."""
        status, content = 404, b""
        if re.fullmatch(re.escape(PREFIX) + "[A-Za-z0-9_-]{1,200}", self.path):
            status, content = self._ask()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _ask(self) -> "tuple[int, bytes]":
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.api + self.path, timeout=TIMEOUT) as answer:
                return 200, answer.read(1000)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""
        except OSError:
            return 503, b""

    def log_message(self, *_: object) -> None:
        """The api logs what concerns it."""


class Server(http.server.ThreadingHTTPServer):
    """Takes no more clients than it has room for."""

    daemon_threads = True
    room = threading.BoundedSemaphore(MOST)

    def process_request(self, request: "socket.socket", client_address: object) -> None:
        """Begin with a client, or close."""
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: "socket.socket", client_address: object) -> None:
        """Serve a client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to us."""


def main(api: str, sock: "socket.socket") -> None:
    """Serve for ever."""
    Handler.api = api.rstrip("/")
    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], socket.socket(fileno=3))
