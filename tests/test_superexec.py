"""`thistledown-superexec`: what it imports before a message comes, and that a message has a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

# Two messages and a ServerApp: each fork says who it is, what chance gives it and which exit handlers it has.
FORKS = """
import json, os, signal, sys, time
import numpy as np
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor
from thistledown import superexec

folder = sys.argv[1]
exit_handler.add_exit_handler(lambda: open(folder + "/parents", "w").close())
started = []
SubprocessExecutor.launch = lambda self, spec: started.append(spec.token)
np.random.random()

def serve(spec):
    said = {"pid": os.getpid(), "chance": np.random.random(), "handlers": len(exit_handler.registered_exit_handlers),
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL}
    with open(f"{folder}/{spec.token}.part", "w") as file:
        json.dump(said, file)
    os.rename(file.name, f"{folder}/{spec.token}.json")
    if spec.token == "two":
        raise ValueError("a message that fails")
    exit_handler.trigger_exit_handlers(run_before_force_exit=False)
    sys.exit(0)

superexec._serve = serve
signal.signal(signal.SIGTERM, lambda *_: None)
executor = superexec._forking()
for token, kind in [("one", TaskType.CLIENT_APP), ("two", TaskType.CLIENT_APP), ("three", TaskType.SERVER_APP)]:
    executor.launch(ExecutionSpec(task_type=kind, runtime_api_address="127.0.0.1:9094", token=token, insecure=True,
                                  root_certificates_path=None, runtime_dependency_install=False, parent_pid=os.getpid(),
                                  suppress_output=False, task_id=1, fab_hash=None))
while not all(os.path.exists(f"{folder}/{token}.json") for token in ("one", "two")):
    time.sleep(0.01)
print(json.dumps([json.load(open(f"{folder}/{token}.json")) for token in ("one", "two")]))
print(started, os.getpid())
time.sleep(0.3)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children are left")
"""


def test_it_imports_libraries_and_nothing_that_comes_with_a_run() -> None:
    code = (
        "import sys; from thistledown.superexec import APP, warm; warm();"
        "print([n for n in APP if n in sys.modules], 'peft' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split("\n")[-2] == "[] True True", ran.stderr


def test_what_a_train_message_imports_is_there_before_it_comes() -> None:
    """All that is slow: what is left is the run's own code, the model's class, and small change."""
    code = (
        "import sys; from thistledown.superexec import warm; warm(); before = set(sys.modules);"
        "import client_app.training, client_app.trial, task.data, task.loading, task.tuning, strategies.rbla;"
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
    assert one["term"]
    assert rest.startswith("['three']")
    assert end == "no children are left"
    assert not (tmp_path / "parents").exists()
    assert "ValueError: a message that fails" in ran.stderr


def test_its_options_are_flowers() -> None:
    helped = subprocess.run([sys.executable, "-m", "thistledown.superexec", "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert "--runtime-api-address" in helped.stdout
