"""`mlpt watch --html`: the report on this machine's loopback address alone, made anew when the run has news."""

import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from mlpt.errors import UserError, one_line
from mlpt.reporting.html.parts import escape
from mlpt.reporting.records import fingerprint
from mlpt.reporting.report import report_page

LOOPBACK = "127.0.0.1"


class ReportServer(ThreadingHTTPServer):
    """Serves `/` (the page) and `/version` (which changes with what the runs have written).

    port  0: one that is free; see `url`. Raises `UserError` where it is taken, and where there is no run.
    """

    daemon_threads = True

    def __init__(self, names: Sequence[str], port: int = 0):
        self._names = list(names)
        self._making = threading.Lock()
        self._version = fingerprint(self._names)
        self._page = report_page(self._names, self._version).encode()
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({one_line(error)}); give another by --port") from error

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def version(self) -> str:
        """Of the files as they are now."""
        return fingerprint(self._names)

    def page(self) -> bytes:
        """The newest one; one request at a time makes it, and only where there is news."""
        with self._making:
            version = self.version()
            if version != self._version:
                self._page = report_page(self._names, version).encode()
                self._version = version
            return self._page


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        # A page of another site whose name leads here must not read runs.
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in (LOOPBACK, "localhost"):
            self._answer(403, "text/plain", b"this server answers on the loopback address only\n")
            return
        try:
            if self.path == "/":
                self._answer(200, "text/html; charset=utf-8", self.server.page())
            elif self.path == "/version":
                self._answer(200, "text/plain", self.server.version().encode())
            else:
                self._answer(404, "text/plain", b"there is only /\n")
        except UserError as error:  # the run was moved away
            self._answer(503, "text/html; charset=utf-8", f"<p>{escape(error)}</p>".encode())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are nothing to tell of."""
