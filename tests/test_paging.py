"""Large tensors in a file: the same numbers, on whatever path they go, and little memory."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from in_process import InProcessGrid, equal, suiting, watched
from test_full_disk import files_up_to

import client_app
import strategies
from strategies.algebra.tensors import snapshot
from strategies.exchange.types import State, Tensors
from strategies.protocol import wire
from task.models.model import kept_model
from task.storage import paging
from task.storage.paging import paged_out, release_pages, stored

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is in memory")
MILLION = 1_000_000
ROOT = Path(__file__).parents[1]


def assorted() -> Tensors:
    """Tensors of many dtypes and shapes."""
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(7, 5),
        "turned": torch.randn(4, 6).T,
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(11).bfloat16(),
        "eight bits": torch.randn(9).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "wide": torch.randn(5, dtype=torch.float64),
    }


def files() -> list[str]:
    """The files without a name that this process maps, which the system numbers; no others that are deleted."""
    folder = tempfile.gettempdir()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/#" in line]


@pytest.mark.parametrize("large", [1, 2**62], ids=["in a file", "in memory"])
def test_copies_have_the_same_numbers_and_are_nobody_elses(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE", large)
    own = assorted()
    held = snapshot(own)
    copies = paged_out(own)
    assert bool(files()) == (large == 1)
    for name, tensor in own.items():
        assert copies[name].shape == tensor.shape
        assert copies[name].dtype == tensor.dtype
        assert copies[name].is_contiguous()
        assert torch.equal(copies[name].view(-1).view(torch.uint8), held[name].reshape(-1).view(torch.uint8))
    copies["matrix"].zero_()
    release_pages()
    assert torch.equal(own["matrix"], held["matrix"])
    assert not copies["matrix"].any()  # what is written stays when pages are given back
    del copies
    assert not files()


@pytest.mark.parametrize("large", [1, 2**62])
def test_copies_are_as_wide_as_asked_for(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE", large)
    own = {name: assorted()[name] for name in ("matrix", "half", "bfloat16", "count", "wide")}
    copies = paged_out(own, torch.float32)
    for name, tensor in own.items():
        assert copies[name].dtype == torch.promote_types(tensor.dtype, torch.float32)
        assert torch.equal(copies[name], tensor.to(copies[name].dtype))


def test_without_room_they_stay_in_memory_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(paging, "LARGE", 2**12)
    own = {"large": torch.arange(MILLION)}
    with files_up_to(2**16):
        copies, bytes_ = paged_out(own), stored(bytes(2**20))
    assert not files()
    assert torch.equal(copies["large"], own["large"])
    assert bytes_ == bytes(2**20)
    assert caplog.text.count("File too large; TMPDIR names another folder") == 2


def test_without_a_folder_for_files_they_stay_in_memory_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(paging, "LARGE", 2**12)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    own = {"large": torch.arange(MILLION)}
    assert torch.equal(paged_out(own)["large"], own["large"])
    assert "No such file or directory" in caplog.text


def test_a_large_message_is_in_a_file_once_it_is_read_and_no_longer_in_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paging, "LARGE", 2**12)
    own = {"a": torch.randn(5000), "b": torch.randn(60, 70).bfloat16(), "flag": torch.tensor([True, False])}
    records = wire.pack(State(own))
    start = wire.taken(records)
    assert files()
    assert equal(start.tensors, own)
    assert "arrays" not in records
    start.tensors["a"].add_(1)  # as from a message in memory
    assert equal(wire.unpack(wire.pack(start)).tensors, own | {"a": own["a"] + 1})


class Sent(InProcessGrid):
    """Keeps the arrays of all replies."""

    def __init__(self, app: Any, nodes: int) -> None:
        super().__init__(app, nodes)
        self.updates: list[Tensors] = []

    def answer(self, message: Message, context: Context) -> Message | None:
        reply = super().answer(message, context)
        if message.metadata.message_type == "train":
            assert reply is not None
            self.updates.append(wire.unpack(reply.content).tensors)
        return reply


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("fedavg", {}, {"tuning": "full"}),
        ("fedavg", {}, {"tuning": "full", "model.dtype": "bfloat16"}),
        ("fedavg", {}, {}),
        ("ferret", {"coordinates": 640, "block": 256}, {}),
        ("ferret", {"coordinates": 640, "block": 256, "momentum": 0.5}, {"model.dtype": "bfloat16"}),
        ("ferret", {"coordinates": 640, "block": 256, "seeds": "pool"}, {}),
        ("fedkseed", {"directions": 64, "block": 4096}, {}),
        ("sa-fedlora", {}, {}),
    ],
)
@pytest.mark.about("paging")
def test_a_run_has_the_same_bits(
    name: str, options: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    for large in (2**62, 1):
        monkeypatch.setattr(paging, "LARGE", large)
        kept_model.cache_clear()
        grid = Sent(client_app.app, 3)
        chosen = {k: v for k, v in suiting(name).items() if "." not in k} | settings
        seen = watched(strategies.load(name, **options), chosen, 2, grid)
        assert not any(line.refused for report, _ in seen for line in report.nodes)
        ended.append((grid.updates, seen[-1][1]))
    (updates, state), (also, same) = ended
    assert len(updates) == len(also) == 6
    assert all(equal(*pair) for pair in zip(updates, also, strict=True))
    assert equal(state.tensors, same.tensors)
    assert state.positions == same.positions


PROGRAM = """
import torch
from strategies.algebra.layout import Layout
from strategies.algebra.tensors import change_since
from strategies.exchange.types import State
from strategies.protocol import wire
from task.storage.paging import paged_out

def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def work(model):
    before = paged_out(model)
    layout = Layout.of(before, 65536)
    for blocks in layout.groups():
        layout.write(before, blocks, layout.read(before, blocks) + 1)
    return wire.pack(State(change_since(before, model)))

torch.set_num_threads(1)
work({"a": torch.ones(5000)})  # whatever a first call loads
model = {str(number): torch.ones(1_000_000) for number in range(50)}  # 200 MB
idle = peak()
reply = work(model)
print(peak() - idle)
"""


@pytest.mark.slow
def test_an_update_of_a_whole_model_takes_the_memory_of_its_message() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert 200 * MILLION <= int(ran.stdout) < 280 * MILLION
