"""`thistledown watch`: the report of a run while it goes on, served to this machine alone."""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from server_app.results.endings import METRICS, SUMMARY, interrupt, lines_in, summary_of
from server_app.results.report import report
from task.schema import ConfigError

LOOPBACK = "127.0.0.1"
LATEST = "latest"  # in a folder of outputs


def watch(results: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the report of a run, made anew from its folder, until Ctrl-C. `port` 0: any that is free.

    `results` is a results folder, or a folder of outputs, of which the newest run is shown. Raises ConfigError.
    """
    place = _place(results)
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(Handler, place))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        raise ConfigError(
            [f"--port {port} cannot be used: {why}; choose another, or 0 for any that is free"]
        ) from error
    with server:
        say(f"http://{LOOPBACK}:{server.server_port}/ shows {place} as it grows; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("no longer watching; the run itself goes on")


def _place(results: Path) -> Path:
    """Return the folder of a run, which may be a link to it. Raises ConfigError."""
    for folder in (results, results / LATEST):
        if (folder / SUMMARY).exists():
            return folder
    raise ConfigError([f"{results} has no results of a run; start one by thistledown run, or name its folder"])


class Handler(BaseHTTPRequestHandler):
    """Answers with the page, and with its version, which changes whenever the run has written something."""

    def __init__(self, place: Path, *connection: object) -> None:
        self._place = place
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer a request for the page or its version."""
        port = self.connection.getsockname()[1]
        own = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}
        host = self.headers.get("Host", "")
        if (host if ":" in host else f"{host}:{HTTP_PORT}") not in own:  # a site elsewhere that had its name lead here
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page is for this machine alone")
        folder = self._place.resolve()  # `latest` may lead to another run by now
        try:
            if self.path == "/version":
                return self._answer(HTTPStatus.OK, "text/plain", _version(folder))
            if self.path == "/":
                interrupt(folder)
                page = report(folder, summary_of(folder), lines_in(folder), _version(folder))
                return self._answer(HTTPStatus.OK, "text/html", page)
        except (OSError, ValueError, KeyError) as error:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{folder} cannot be read: {error}")
        return self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is nothing but /")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the browser has left

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing: the page asks every two seconds."""


def _version(folder: Path) -> str:
    """Return a text that changes with the files of a run."""
    files = [folder / name for name in (SUMMARY, METRICS) if (folder / name).exists()]
    return "-".join([folder.name, *(str(path.stat().st_mtime_ns) for path in files)])
