"""A stand-in for the Hugging Face Hub on this machine: it makes repositories and takes commits, as huggingface_hub
sends them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_token"
OWNER = "me"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class ModelHub(ThreadingHTTPServer):
    """`repositories` by name; `objects` are large files, by their SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The addresses that an upload of a folder asks for; weights travel as large files."""

    server: ModelHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        name = self.path.partition("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        found = self.server.repositories.get(name)
        if found is None:
            self._answer({"error": "Repository not found"}, 404)
        else:
            self._answer({"id": name, "modelId": name, "private": found.private, "siblings": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            self._answer(
                {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._upload(one) for one in json.loads(body)["objects"]]})
        elif "/commit/main" in self.path:
            self._commit(self.path.split("/commit/")[0].removeprefix("/api/models/"), body)
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        self._note()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        there = name in self.server.repositories
        if not there:
            private = asked.get("private", False) or asked.get("visibility") == "private"
            self.server.repositories[name] = Repository(private)
        self._answer({"url": f"{self.server.url}/{name}", "name": name}, 409 if there else 200)

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        where = {"href": f"{self.server.url}/objects/{one['oid']}"}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": where}}

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name].files
        for line in map(json.loads, body.decode().splitlines()):
            said = line["value"]
            if line["key"] == "file":
                files[said["path"]] = base64.b64decode(said["content"])
            elif line["key"] == "lfsFile":
                files[said["path"]] = self.server.objects[said["oid"]]
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        self._answer({"success": True, "commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})

    def _note(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Keep standard error quiet."""


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    """A hub that serves until the block ends."""
    hub = ModelHub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
