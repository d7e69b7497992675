"""`thistledown-superexec`: what it imports before a message comes, and that a message has a process of its own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.supercore.superexec.executor.types import LaunchResultStatus

from thistledown.processes import pins, superexec
from thistledown.processes.pins import PinError, Pins

# Two messages and a ServerApp: each fork says who it is, what chance gives it and which exit handlers it has.
FORKS = """
import json, os, signal, sys, time
import numpy as np
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor
from thistledown.processes import superexec

folder = sys.argv[1]
exit_handler.add_exit_handler(lambda: open(folder + "/parents", "w").close())
started = []
SubprocessExecutor.launch = lambda self, spec: started.append(spec.token)
np.random.random()

def serve(spec, pipe, pins, stays, seconds):
    token = pipe.recv_bytes().decode()
    pipe.send_bytes(b"taken")
    said = {"pid": os.getpid(), "chance": np.random.random(), "handlers": len(exit_handler.registered_exit_handlers),
            "term": signal.getsignal(signal.SIGTERM).__name__}
    with open(f"{folder}/{token}.part", "w") as file:
        json.dump(said, file)
    os.rename(file.name, f"{folder}/{token}.json")
    if token == "two":
        raise ValueError("a message that fails")
    exit_handler.trigger_exit_handlers(run_before_force_exit=False)
    sys.exit(0)

superexec.serve = serve
signal.signal(signal.SIGTERM, lambda *_: None)
executor = superexec._forking(superexec.Options(runs=0))
for token, kind in [("one", TaskType.CLIENT_APP), ("two", TaskType.CLIENT_APP), ("three", TaskType.SERVER_APP)]:
    executor.launch(ExecutionSpec(task_type=kind, runtime_api_address="127.0.0.1:9094", token=token, insecure=True,
                                  root_certificates_path=None, runtime_dependency_install=False, parent_pid=os.getpid(),
                                  suppress_output=False, task_id=1, fab_hash=None))
while not all(os.path.exists(f"{folder}/{token}.json") for token in ("one", "two")):
    time.sleep(0.01)
print(json.dumps([json.load(open(f"{folder}/{token}.json")) for token in ("one", "two")]))
print(started, os.getpid())
executor.close()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children are left")
"""


@pytest.mark.slow
def test_it_imports_libraries_and_nothing_that_comes_with_a_run() -> None:
    code = (
        "import sys; from thistledown.processes.superexec import APP, warm; warm();"
        "print([n for n in APP if n in sys.modules], 'peft' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split("\n")[-2] == "[] True True", ran.stderr


@pytest.mark.slow
def test_what_a_train_message_imports_is_there_before_it_comes() -> None:
    """All that is slow: what is left is the run's own code, the model's class, and small change."""
    code = (
        "import sys; from thistledown.processes.superexec import warm; warm(); before = set(sys.modules);"
        "import client_app.training, client_app.trial, task.data.prepared, task.models.loading, task.models.tuning;"
        "import strategies.rbla;"
        "print({n.split('.')[0] for n in set(sys.modules) - before} - {'task', 'strategies', 'client_app'})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not eval(ran.stdout.split("\n")[-2]) & {"torch", "transformers", "peft", "scipy", "PIL", "flwr"}, ran.stdout


def test_every_message_has_a_process_of_its_own(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FORKS, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    said, rest, end = ran.stdout.splitlines()
    one, two = json.loads(said)
    parent = int(rest.split()[-1])
    assert len({one["pid"], two["pid"], parent}) == 3
    assert one["chance"] != two["chance"]
    assert one["handlers"] == two["handlers"] == 0
    assert one["term"] == "_leave"
    assert rest.startswith("['three']")
    assert end == "no children are left"
    assert not (tmp_path / "parents").exists()
    assert "ValueError: a message that fails" in ran.stderr


@pytest.mark.slow
def test_its_options_are_flowers_and_pins() -> None:
    helped = subprocess.run(
        [sys.executable, "-m", "thistledown.processes.superexec", "--help"], capture_output=True, text=True
    )
    assert helped.returncode == 0
    assert "--runtime-api-address" in helped.stdout
    assert "--app-hash HASH" in helped.stdout
    assert "--resident-runs N" in helped.stdout


# ------------------------------------------------------------------------------------------------ pins
PROJECT = """
[project]
name = "some"
version = "0.1.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "own:server"
clientapp = "own:client"
"""
APP_CODE = """
import sys
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
open(sys.argv[1] + "/{name}", "a").write("imported ")
client, server = ClientApp(), ServerApp()
@client.train()
def train(message, context):
    return Message(RecordDict({{"said": ConfigRecord({{"app": "{name}"}})}}), reply_to=message)
"""
# Flower's own ClientApp process, whose messages come and go through files: what the server says of the app is a claim.
MESSAGE = """
import json, sys
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as flowers
from thistledown.processes.pins import Pins, enforce
folder, fab, said, *pinned = sys.argv[1:]
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 7, 1
message = Message(RecordDict(), dst_node_id=1, message_type="train")
message.metadata.__dict__["_message_id"] = "m"
context = Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config={})
run = Run.create_empty(7)
run.fab_id, run.fab_version, run.fab_hash = "somebody/some", "0.1.0", said
class Quiet:
    def __getattr__(self, name):
        return Quiet()
    def __call__(self, *a, **k):
        return Quiet()
flowers.RuntimeHttpClient = flowers.HeartbeatSender = Quiet()
flowers.pull_task_input = lambda client: (message, context, run, Fab(said, Path(fab).read_bytes(), {}))
def answer(client, reply, context):
    found = reply.error.reason if reply.has_error() else reply.content["said"]["app"]
    Path(folder, "reply").write_text(found)
flowers.push_message = answer
if pinned:
    enforce(Pins(pinned))
flowers.run_clientapp("127.0.0.1:1", "token", True)
"""


def bundle(folder: Path, name: str) -> tuple[Path, str]:
    """A bundle whose client says its name, and leaves a file of that name when it is imported; and its hash."""
    app = folder / name / "some"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "own.py").write_text(APP_CODE.format(name=name))
    content = build_fab_from_disk(app)
    (folder / f"{name}.fab").write_bytes(content)
    return folder / f"{name}.fab", hashlib.sha256(content).hexdigest()


def answered(folder: Path, fab: Path, said: str, *pinned: str) -> tuple[str, str]:
    """What the server gets, and the node's log."""
    command = [sys.executable, "-c", MESSAGE, str(folder), str(fab), said, *pinned]
    own = {"FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "PATH": "/usr/bin"}
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], env=own, capture_output=True, text=True, timeout=120)
    log = ran.stdout + ran.stderr
    assert (folder / "reply").exists(), log
    return (folder / "reply").read_text(), log


@pytest.mark.slow
def test_a_pinned_app_runs_and_no_other(tmp_path: Path) -> None:
    """Whatever the server says its hash and name are: here those of the pinned app."""
    ours, pinned = bundle(tmp_path / "bundles", "ours")
    foreign, other = bundle(tmp_path / "bundles", "foreign")
    assert answered(tmp_path, ours, pinned, pinned)[0] == "ours"
    said, log = answered(tmp_path, foreign, pinned, pinned)
    assert said == f"<class 'thistledown.processes.pins.ForeignApp'>:<'{pins.REFUSED}'>"
    assert f"refused the app {other}, which is not pinned; pinned are {pinned}" in log
    assert not (tmp_path / "foreign").exists()
    assert answered(tmp_path, foreign, other, pinned, other)[0] == "foreign"


def test_without_a_pin_a_foreign_app_runs(tmp_path: Path) -> None:
    """What the check is for; it shows that the test above could fail."""
    foreign, other = bundle(tmp_path / "bundles", "foreign")
    assert answered(tmp_path, foreign, other)[0] == "foreign"


@pytest.mark.slow
def test_code_that_lies_where_flower_unpacks_is_not_run(tmp_path: Path) -> None:
    """Flower takes a folder that is there for the app, by eight digits of a hash."""
    ours, pinned = bundle(tmp_path / "bundles", "ours")
    place = tmp_path / "flwr" / "apps" / f"somebody.some.0.1.0.{pinned[:8]}"
    place.mkdir(parents=True)
    (place / "pyproject.toml").write_text(PROJECT)
    (place / "own.py").write_text(APP_CODE.format(name="left"))
    assert answered(tmp_path, ours, pinned)[0] == "left"
    assert answered(tmp_path, ours, pinned, pinned)[0] == "ours"
    assert answered(tmp_path, ours, "0" * 64, pinned)[0] == "ours"
    assert [path.name for path in (tmp_path / "flwr" / "pinned").iterdir()] == [pinned]


def test_pins_are_read_from_files_anew(tmp_path: Path) -> None:
    file = tmp_path / "app-hashes"
    one, two = "1" * 64, "aB" * 32
    file.write_text(f"# what clinic-1 runs\n\n{one}  thistledown.fab\n{two}\n")
    own = Pins([], [file])
    assert own.read() == {one, two.lower()}
    content = b"an app"
    with pytest.raises(pins.ForeignApp, match=pins.REFUSED):
        own.check(content)
    file.write_text(hashlib.sha256(content).hexdigest())
    assert own.check(content) == hashlib.sha256(content).hexdigest()
    file.unlink()
    with pytest.raises(pins.ForeignApp, match=pins.REFUSED):
        own.check(content)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("12", "app-hashes, line 2: '12' is not a hash of an app; expected 64 hexadecimal digits"),
        ("", "no app is pinned in"),
        ("x" * 500, "line 2: 'x"),
    ],
)
def test_what_is_no_pin_is_said_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "app-hashes").write_text(f"#\n{text}\n")
    command = [
        sys.executable,
        "-m",
        "thistledown.processes.superexec",
        "--insecure",
        "--runtime-api-address",
        "127.0.0.1:1",
    ]
    ran = subprocess.run(
        [*command, "--app-hashes", "app-hashes"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert words in ran.stderr
    with pytest.raises(PinError, match="cannot be read"):
        Pins([], [tmp_path / "none"]).read()


def test_where_apps_are_pinned_only_client_apps_run() -> None:
    """A server may call its run something else, and Flower would start that with the app it brings."""
    executor = superexec._forking(superexec.Options(Pins(["0" * 64])))
    for kind in set(TaskType) - {TaskType.CLIENT_APP}:
        result = executor.launch(
            ExecutionSpec(
                task_type=kind, runtime_api_address="127.0.0.1:1", token="t", insecure=True, task_id=1,
                root_certificates_path=None, runtime_dependency_install=False, parent_pid=None, suppress_output=True,
            )
        )  # fmt: skip
        assert result.status == LaunchResultStatus.FAILED, kind


def test_a_flower_that_loads_apps_otherwise_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supernode.runtime import run_clientapp

    monkeypatch.delattr(run_clientapp, "install_from_fab")
    with pytest.raises(RuntimeError, match=r"install_from_fab.*pins cannot be enforced"):
        pins.enforce(Pins(["0" * 64]))
