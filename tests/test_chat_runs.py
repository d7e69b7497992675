"""Conversations in runs: on nodes with files of their own, by a template of the user's, and what a node tells."""

import json
from pathlib import Path
from typing import Any

import pytest
from chats import ALTERNATING, SYSTEM, chatml, language_model, sharegpt, write_rows
from deployed_node import SECRET, context, refusal
from in_process import federate

import strategies
from strategies.protocol.instructions import write
from task.config import Model, TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.storage.store import Store
from thistledown.commands.check import check
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
ON_SERVER = ("num-server-rounds", "simulation.num-supernodes")
ASSETS = APP.parent / "shared" / "assets"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = language_model(tmp_path_factory.mktemp("model"))
    return server_base(Model(name=str(folder)), Store(folder / "store"))


def run_of(base: Path, file: Path, **options: object) -> dict[str, Any]:
    own = {"name": str(file), "messages-column": "messages", "test-split": "", "partitioner": "iid", "max-length": 128}
    own |= {name.replace("_", "-"): value for name, value in options.items()}
    flat = {"task.kind": "causal-lm", "model.name": str(base), **{f"data.{name}": value for name, value in own.items()}}
    return flat | {"num-server-rounds": 2, "local-steps": 2, "simulation.num-supernodes": 2, "batch-size": 4}


@pytest.mark.judged
@pytest.mark.slow
def test_a_federation_learns_from_conversations_by_a_file_of_the_users(base: Base, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": [SYSTEM, *chat]} for chat in ALTERNATING] * 8)
    own = write_rows(tmp_path / "own.jsonl", [{"messages": sharegpt(chat)} for chat in ALTERNATING] * 8)
    (tmp_path / "own.jinja").write_text(chatml("{% generation %}", "{% endgeneration %}"))
    flat = run_of(base.folder, file, template=str(tmp_path / "own.jinja")) | {"evaluate": "both"}
    outcome = federate(tmp_path / "out", flat, node_configs={0: {"data-path": str(own)}})
    assert outcome.summary["status"] == "completed"
    assert outcome.summary["final"] < outcome.summary["base"]
    kept = json.loads((outcome.folder / "checkpoints" / "settings.json").read_text())["settings"]
    assert kept["data.template"] == chatml("{% generation %}", "{% endgeneration %}")


@pytest.mark.first(2)
@pytest.mark.parametrize("rows", [
    [{"messages": [{"role": SECRET, "content": SECRET}]}],
    [{"messages": [{"role": "user", "content": SECRET}]}],
    [{"messages": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": ""}]}],
    [{"messages": [{"role": "user", "content": SECRET}] * 2 + [{"role": "assistant", "content": SECRET}]}],
    [{"messages": [{"role": "user", "content": SECRET}]}, {"messages": [{"role": "user", "content": 3}]}],
])  # fmt: skip
def test_a_node_tells_nothing_of_its_conversations(rows: list[Any], base: Base, tmp_path: Path) -> None:
    """The fourth kind of row is refused by the template, whose error quotes it."""
    quotes = chatml().replace("{% for m in messages %}", (
        "{% for m in messages %}{% if not loop.first and m.role == 'user' %}"
        "{{ raise_exception('this: ' + m.content) }}{% endif %}"
    ))  # fmt: skip
    good = [{"messages": ALTERNATING[0]}] * 8
    file = write_rows(tmp_path / "rows.jsonl", [*good, *rows])
    options = run_of(base.folder, tmp_path / "none", template=quotes, partitioner="none") | {"evaluate": "nodes"}
    task = TaskConfig.read({key: value for key, value in options.items() if key not in ON_SERVER})
    asked = write(task, strategies.load("fedavg"), base.fingerprint)
    node = context(data_path=str(file), store_path=str(tmp_path / "store"), follow_paths=True)
    said = refusal("query.rehearsal", {"instructions": asked}, node)
    assert said.startswith("column 'messages': ") or said == "a column has values of several types", said
    for private in (SECRET, "rows.jsonl", "row 8", "line 9", "turn 0", "turn 1"):
        assert private not in said


@pytest.mark.slow
def test_check_shows_what_is_learned(base: Base, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": ALTERNATING[1]}] * 40)
    keys = [f"{key}={value!r}" for key, value in run_of(base.folder, file, template="chatml").items()]
    lines: list[str] = []
    check(Settings.read(APP, None, keys, tmp_path), lines.append, rows=2)
    start = next(number for number, line in enumerate(lines) if line.startswith("row 0"))
    assert lines[start].endswith("of them learned")
    assert lines[start + 1 : start + 5] == [
        '  given    "<|im_start|>user\\nsay not hot<|im_end|>\\n<|im_start|>assistant\\n"',
        '  learned  "cold<|im_end|>"',
        '  given    "\\n<|im_start|>user\\nsay not night<|im_end|>\\n<|im_start|>assistant\\n"',
        '  learned  "day<|im_end|>"',
    ]
    assert sum(line.startswith("row ") for line in lines) == 2
    assert "of them learned; turns by the template 'chatml'" in "\n".join(lines)


def test_check_shows_texts_and_images_with_their_labels(tmp_path: Path) -> None:
    lines: list[str] = []
    check(Settings.read(APP, None, [], tmp_path), lines.append, rows=1)
    (line,) = [line for line in lines if line.startswith("row 0")]
    assert "(1, 8, 8)" in line
    assert "label '" in line


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "less"), [("chat-small", 0.1), ("chat-0.5b", 0.01)])
def test_presets_run_on_a_real_small_model(tmp_path: Path, preset: str, less: float) -> None:
    model = ASSETS / "stories260k-llama"
    if not model.exists():
        pytest.skip("../shared/assets/stories260k-llama is not here")
    rows = [{"messages": [SYSTEM, *chat], "category": f"kind {n % 3}"} for n, chat in enumerate(ALTERNATING * 40)]
    file = write_rows(tmp_path / "chats.jsonl", rows)
    keys = [
        f"model.name='{model}' data.name='{file}' data.test-split='' simulation.num-supernodes=3",
        "num-server-rounds=2 local-steps=4 batch-size=4 data.max-length=128 data.template='chatml'",
    ]
    read = Settings.read(APP, preset, keys, tmp_path)
    outcome = federate(tmp_path / "out", dict(read.config.flat))
    assert outcome.summary["status"] == "completed"
    assert outcome.summary["final"] < outcome.summary["base"] - less
