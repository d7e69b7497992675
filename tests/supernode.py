"""A SuperNode without a SuperLink, and our executor: Flower's own state and Runtime API, to which tests give messages.

What is left out is how messages come from a server, and go there.
"""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from benchmarks.program import QUIET, free_port

NODE = 3
# The executor with Flower alone imported in advance: an app of a test needs no more.
EXECUTOR = (
    "from thistledown.processes import residents as r, superexec as s; r.TAKES = 5.0; s.WARM = s.WARM[:1]; s.main()"
)


@dataclass
class SuperNode:
    """A node whose messages a test sends. Works in `folder`; `options` are the executor's."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)

    def __enter__(self) -> "SuperNode":
        objects = ObjectStoreFactory()
        states = NodeStateFactory(objectstore_factory=objects)
        self.state, self.objects = states.state(), objects.store()
        self.state.set_node_id(NODE)
        app = create_app(state_factory=states)
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        home = {"FLWR_HOME": str(self.folder / "flwr"), "TMPDIR": str(self.temporary)}
        self.temporary.mkdir()
        with (self.folder / "log").open("wb") as log:
            self.executor = subprocess.Popen(
                [sys.executable, "-c", EXECUTOR, "--insecure", "--runtime-api-address", f"127.0.0.1:{self.port}",
                 *self.options],
                cwd=Path(__file__).parents[1], env=os.environ | QUIET | home, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.terminate()
        self.executor.wait(30)
        self._server.should_exit = True
        self._thread.join()

    @property
    def temporary(self) -> Path:
        """Return the folder in which processes make their folders of temporary files."""
        return self.folder / "temporary"

    @property
    def log(self) -> str:
        """Return what the executor and its processes have said."""
        return (self.folder / "log").read_text()

    def processes(self) -> list[int]:
        """Return the processes that serve messages, or wait for one."""
        return [child.pid for child in psutil.Process(self.executor.pid).children(recursive=True)]

    def send(self, run: int, fab: Path, **asked: Any) -> None:
        """Give the node a message of a run, as if it came from the server."""
        digest = self._known(run, fab)
        before, TaskIdentity.run_id = TaskIdentity.run_id, run
        try:
            message = Message(RecordDict({"asked": ConfigRecord(asked)}), dst_node_id=NODE, message_type="train")
        finally:
            TaskIdentity.run_id = before
        message.metadata.__dict__["_message_id"] = message.object_id
        _insert_message(message, self.state, self.objects)
        self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=run, fab_hash=digest)

    def answer(self, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the reply to the message; return what it says, or the `error` that it is."""
        deadline = time.monotonic() + seconds
        while not (replies := self.state.get_messages_legacy(is_reply=True)):
            assert time.monotonic() < deadline, self.log
            assert self.executor.poll() is None, self.log
            time.sleep(0.02)
        [reply] = replies
        about = reply.metadata
        contents: dict[str, bytes] = {}
        if not reply.has_error():
            for tree in iterate_object_tree(self.objects.get_object_tree(about.message_id)):
                while not (content := self.objects.get(tree.object_id)):
                    time.sleep(0.02)
                contents[tree.object_id] = content
        self.state.delete_messages(message_ids=[about.message_id, about.reply_to_message_id])
        self.objects.delete(about.message_id)
        if reply.has_error():
            return {"error": reply.error.reason, "code": reply.error.code}
        whole = inflate_object_from_contents(about.message_id, contents)
        assert isinstance(whole, Message)
        return dict(whole.content["said"])  # type: ignore[arg-type]

    def ask(self, run: int, fab: Path, **asked: Any) -> dict[str, Any]:
        """Send a message and wait for the reply."""
        self.send(run, fab, **asked)
        return self.answer()

    def until(self, count: int, seconds: float = 60.0) -> list[int]:
        """Wait until so many processes serve messages or wait for one, and return them."""
        deadline = time.monotonic() + seconds
        while len(found := self.processes()) != count:
            assert time.monotonic() < deadline, f"{found}\n{self.log}"
            time.sleep(0.02)
        return found

    def _known(self, run: int, fab: Path) -> str:
        """Store the run and its app, as a SuperNode does at the first message. Return the hash of the app."""
        content = fab.read_bytes()
        digest = self.state.store_fab(Fab("", content, {}))
        about = Run.create_empty(run)
        about.fab_id, about.fab_version, about.fab_hash, about.series_id = "somebody/some", "0.1.0", digest, run
        self.state.store_run(about)
        context = Context(run_id=run, node_id=NODE, node_config={}, state=RecordDict(), run_config={})
        self.state.set_run_series_context(run, context)
        return digest
