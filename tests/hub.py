"""A stand-in for Flower's Hub on this machine: it takes the files of an app and hands them out."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore

HOST = "hub.invalid"  # that somebody is logged in to; nothing is ever sent there
TOKEN = "token"


class Hub(ThreadingHTTPServer):
    """`files` is what was published last, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def zipped(self, name: str) -> bytes:
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as archive:
            for path, content in self.files.items():
                archive.writestr(f"{name}/{path}", content)
        return written.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The three addresses that `flwr app publish` and `flwr new` ask for."""

    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hub/apps/publish" and self.headers["Authorization"] == f"Bearer {TOKEN}":
            self.server.files = dict(_parts(self.headers["Content-Type"], body))
            self._answer(b"{}")
        elif self.path == "/hub/fetch-zip":
            name = json.loads(body)["app_id"].split("/")[1]
            self._answer(json.dumps({"zip_url": f"{self.server.url}/{name}.zip"}).encode())
        else:
            self.send_error(403)

    def do_GET(self) -> None:
        self._answer(self.server.zipped(Path(self.path).stem))

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Keep standard error quiet."""


def _parts(kind: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of a multipart form."""
    form = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    for part in form.iter_parts():
        name, content = part.get_filename(), part.get_payload(decode=True)
        assert isinstance(name, str)
        assert isinstance(content, bytes)
        yield name, content


@contextmanager
def logged_in(home: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A hub, and the variables with which Flower's command line finds it and an account in the folder `home`."""
    credentials = FileCredentialStore(home / "credentials.yaml")
    credentials.set(AUTHN_TYPE_STORE_KEY % HOST, b"oidc")
    for key in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
        credentials.set(key % HOST, TOKEN.encode())
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    switches = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
    try:
        yield hub, switches | {"FLWR_SUPERGRID_API_URL": hub.url, "FLWR_SUPERGRID_ADDRESS": HOST}
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
