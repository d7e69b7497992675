"""Every partitioner over real labels: what a split must be, that it repeats, and what is said when it fails."""

import hashlib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from added import added, example
from hypothesis import given
from hypothesis import strategies as st
from in_process import federate
from tiers import examples

from task.config import TaskConfig
from task.data.index import DataIndex, Part
from task.data.partition import _kept, partition, table
from task.data.partitioners import registry
from task.data.partitioners.base import SplitError
from task.data.sources.digits import digits_part
from task.schema import ConfigError, flatten, schema
from task.storage.store import Store, recipe_hash

SPLITS = [name for name in registry.names() if not registry.load(name).own_rows]


SETTLED = {  # of 6 nodes and seed 0: these never change
    "iid": "c09edf4ddf8e1e69",
    "dirichlet": "1045f6c7fb6e56c0",
    "shards": "9e2438d5b0b07e38",
    "natural": "f263599c6687d7e0",
    "linear": "885bdb7f6793b95c",
    "square": "3165b44c84179672",
    "exponential": "0423a6389fd6c976",
    "staircase": "1a97e16c0978c101",
}


def config(partitioner: str, seed: int = 0, **options: object) -> TaskConfig:
    flat = {f"data.{name.replace('_', '-')}": value for name, value in options.items()}
    own = {"data.name": "mine.csv", "data.id-column": "user"} if partitioner == "natural" else {}
    return TaskConfig.read({"data.partitioner": partitioner, "seed": seed, **own, **flat})


def divided(
    config: TaskConfig, labels: np.ndarray, ids: np.ndarray | None, nodes: int, store: Store
) -> Sequence[np.ndarray]:
    """The split of rows with these labels and natural clients."""
    part = Part("train", np.arange(len(labels)), labels, ids)
    return partition(config, DataIndex(key_of(labels, ids), (), {"train": part}), nodes, store)


def key_of(labels: np.ndarray, ids: np.ndarray | None) -> str:
    return recipe_hash([labels.tolist(), None if ids is None else ids.tolist()])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return digits_part("train")[1]


@pytest.fixture(scope="module")
def ids(labels: np.ndarray) -> np.ndarray:
    """Thirteen natural clients."""
    return np.arange(len(labels)) * 7 % 13


@pytest.mark.parametrize("kind", SPLITS)
def test_a_split_is_disjoint_seeded_and_kept(
    kind: str, labels: np.ndarray, ids: np.ndarray, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = divided(config(kind), labels, ids, 6, store)
    rows = np.concatenate(parts)
    assert len(parts) == 6
    assert len(set(rows.tolist())) == len(rows)
    assert len(rows) >= len(labels) - 12 * (kind == "shards")
    assert 0 <= rows.min() <= rows.max() < len(labels)
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)

    again = divided(config(kind), labels, ids, 6, Store(tmp_path / "other"))
    assert all((one == two).all() for one, two in zip(parts, again, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr("task.data.partition._divide", None)
        _kept.cache_clear()
        kept = divided(config(kind), labels, ids, 6, store)
        assert all((one == two).all() for one, two in zip(parts, kept, strict=True))
    other = divided(config(kind, seed=1), labels, ids, 6, store)
    same = [set(one) == set(two) for one, two in zip(parts, other, strict=True)]
    assert all(same) if kind == "natural" else not any(same)


@pytest.mark.parametrize("kind", SETTLED)
def test_equal_seeds_give_equal_splits_in_every_version(
    kind: str, labels: np.ndarray, ids: np.ndarray, store: Store
) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for part in divided(config(kind), labels, ids, 6, store):
        digest.update(np.int64(len(part)).tobytes() + np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest() == SETTLED[kind]


@pytest.mark.slow
def test_a_kept_split_is_read_without_heavy_imports_and_without_labels(labels: np.ndarray, store: Store) -> None:
    divided(config("dirichlet"), labels, None, 10, store)
    code = f"""
import sys
from pathlib import Path
from task.config import TaskConfig
from task.data.index import DataIndex
from task.data.partition import partition
from task.storage.store import Store
index = DataIndex({key_of(labels, None)!r}, (), {{}})
assert len(partition(TaskConfig.read({{}}), index, 10, Store(Path({str(store.root)!r})))) == 10
print(sorted({{"datasets", "flwr_datasets", "pandas", "peft", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dirichlet_skews_by_alpha_and_keeps_the_minimum(labels: np.ndarray, store: Store) -> None:
    skews = []
    for alpha in (0.1, 100.0):
        parts = divided(config("dirichlet", alpha=alpha, min_partition_size=20), labels, None, 8, store)
        assert min(len(part) for part in parts) >= 20
        shares = [np.bincount(labels[part], minlength=10).max() / len(part) for part in parts]
        skews.append(np.mean(shares))
    assert skews[0] > 0.4 > 0.2 > skews[1]


def test_shards_give_few_labels_to_a_node(labels: np.ndarray, store: Store) -> None:
    parts = divided(config("shards", shards_per_node=2), labels, None, 10, store)
    assert max(len(np.unique(labels[part])) for part in parts) <= 4
    assert {len(part) for part in parts} == {74}


def test_iid_does_not_follow_the_order_of_the_file(store: Store) -> None:
    in_order = np.repeat(np.arange(5), 100)
    for kind in ("iid", "linear"):
        for part in divided(config(kind), in_order, None, 5, store):
            assert len(np.unique(in_order[part])) == 5


@pytest.mark.parametrize("kind", ["linear", "square", "exponential"])
def test_size_skew(kind: str, labels: np.ndarray, store: Store) -> None:
    sizes = [len(part) for part in divided(config(kind), labels, None, 5, store)]
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 1.6 * sizes[0]


def test_natural_clients_are_dealt_in_turn(
    labels: np.ndarray, ids: np.ndarray, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    exact = divided(config("natural"), labels, ids, 13, store)
    assert [np.unique(ids[part]).tolist() for part in exact] == [[number] for number in range(13)]
    with caplog.at_level(logging.INFO, "task.data.partitioners.natural"):
        fewer = divided(config("natural"), labels, ids, 5, store)
    assert [np.unique(ids[part]).tolist() for part in fewer] == [list(range(n, 13, 5)) for n in range(5)]
    assert "13 natural clients on 5 nodes" in caplog.text
    with pytest.raises(SplitError, match=r"data\.id-column names 13 clients for 14 nodes"):
        divided(config("natural"), labels, ids, 14, store)
    with pytest.raises(SplitError, match=r"needs data\.id-column"):
        divided(config("natural"), labels, None, 5, store)


def test_a_split_that_cannot_be_says_what_to_change(labels: np.ndarray, store: Store) -> None:
    with pytest.raises(SplitError) as error:
        divided(config("dirichlet"), labels, None, 200, store)
    assert str(error.value) == (
        "750 rows cannot be divided among 200 nodes by the dirichlet split with data.alpha = 0.5 and "
        "data.min-partition-size = 5 (3.8 rows a node on average); use fewer nodes, a larger alpha, a smaller "
        "min-partition-size, or the iid split"
    )
    assert not list((store.root / "splits").iterdir())
    refused = {
        ("iid", 751): "750 rows cannot be divided among 751 nodes",
        ("shards", 400): "shards-per-node = 2; use fewer nodes or fewer shards",
        ("exponential", 50): "50 nodes by the exponential split: some would get none",
        ("staircase", 100): "100 nodes by the staircase split: some would get none",
        ("none", 5): "nodes bring their own rows",
    }
    for (kind, nodes), problem in refused.items():
        with pytest.raises(SplitError, match=problem):
            divided(config(kind), labels, None, nodes, store)


def test_a_table_of_a_split(labels: np.ndarray, store: Store) -> None:
    names = tuple("0123456789")
    text = table(divided(config("iid"), labels, None, 30, store), labels, names)
    lines = text.splitlines()
    assert len(lines) == 22
    assert lines[0].split() == ["node", "rows", *names]
    assert lines[1].split()[:2] == ["0", "25"]
    assert lines[-1] == "... and 10 more; 25 to 25 rows a node"
    assert max(map(len, lines)) <= 100


@examples(40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(12, 30), st.integers(0, 9))
def test_a_staircase_gives_growing_labels_and_rows(classes: int, nodes: int, rows: int, seed: int) -> None:
    """Laws: disjoint, every row given, node i holds the classes up to its step and no fewer rows than node i - 1."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), rows))
    with tempfile.TemporaryDirectory() as folder:
        parts = divided(config("staircase", seed=seed), labels, None, nodes, Store(Path(folder)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for node, part in enumerate(parts):
        assert np.unique(labels[part]).tolist() == [c for c in range(classes) if c * nodes // classes <= node]
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes)


def test_a_staircase_of_as_many_nodes_as_labels(labels: np.ndarray, store: Store) -> None:
    parts = divided(config("staircase"), labels, None, 10, store)
    for node, part in enumerate(parts):
        assert np.unique(labels[part]).tolist() == list(range(node + 1))
    zeros = [np.count_nonzero(labels[part] == 0) for part in parts]
    assert max(zeros) - min(zeros) <= 1


# ---------------------------------------------------------------------- options
def test_options_that_are_older_than_their_partitioners_file_keep_their_keys() -> None:
    task = TaskConfig.read({"data.partitioner": "shards", "data.shards-per-node": 3, "data.alpha": 0.1})
    assert task.data.partitioner == registry.load("shards")(shards_per_node=3)
    assert flatten(task, changed_only=True) == {"data.partitioner": "shards", "data.shards-per-node": 3}
    assert flatten(TaskConfig()).keys() >= {"data.partitioner", "data.alpha", "data.min-partition-size"}
    assert TaskConfig.read(flatten(task)) == task


@pytest.mark.parametrize("kind", registry.names())
def test_keys_of_options_are_of_one_partitioner(kind: str) -> None:
    own = schema(registry.load(kind), f"{registry.load(kind).table or kind}.")
    others = [name for name in registry.names() if name != kind]
    for other in others:
        assert not own.keys() & schema(registry.load(other), f"{registry.load(other).table or other}.").keys()


def test_what_a_partitioner_needs_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'natural' needs data\.id-column.*the digits have none"):
        TaskConfig.read({"data.partitioner": "natural"})
    with pytest.raises(ConfigError, match=r"must be one of .*not 'dirchlet'; did you mean 'dirichlet'"):
        TaskConfig.read({"data.partitioner": "dirchlet"})
    with pytest.raises(ConfigError, match=r"data\.alpha must be at least 0\.001, not 0"):
        TaskConfig.read({"data.partitioner": "iid", "data.alpha": 0.0})


# ---------------------------------------------------------------------- a contributor's
@pytest.fixture
def contributed(tmp_path: Path) -> Iterator[str]:
    """The partitioner that CONTRIBUTING.md shows."""
    name, text = example(registry.PACKAGE)
    with added(registry.PACKAGE, {name: text}, tmp_path / "more"):
        yield name.replace("_", "-")


def test_a_partitioner_is_one_file(
    contributed: str,
    labels: np.ndarray,
    ids: np.ndarray,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test_a_split_is_disjoint_seeded_and_kept(contributed, labels, ids, store, tmp_path, monkeypatch)
    test_keys_of_options_are_of_one_partitioner(contributed)
    with pytest.raises(SplitError, match="750 rows cannot be divided among 751 nodes"):
        divided(config(contributed), labels, None, 751, store)
    assert [len(part) for part in divided(config(contributed), labels, None, 750, store)] == [1] * 750


def test_its_options_are_keys(contributed: str, labels: np.ndarray, store: Store) -> None:
    flat = {"data.partitioner": contributed, f"{contributed}.sigma": 0.0}
    task = TaskConfig.read(flat)
    assert flatten(task, changed_only=True) == flat
    equal, skewed = (divided(one, labels, None, 10, store) for one in (task, config(contributed)))
    assert {len(part) for part in equal} == {75}
    assert max(map(len, skewed)) > 3 * min(map(len, skewed))
    with pytest.raises(ConfigError, match=rf"{contributed}\.sigma must be at most 10, not 11"):
        TaskConfig.read(flat | {f"{contributed}.sigma": 11.0})


@pytest.mark.slow
def test_a_federation_is_divided_by_it(contributed: str, tmp_path: Path) -> None:
    options = {"log-normal.sigma": 2.0, "max-weight-ratio": 0.0, "num-server-rounds": 1}
    outcome = federate(tmp_path, {"data.partitioner": contributed, **options})
    rows = [node["metrics"]["num-examples"] for node in outcome.rounds[1]["nodes"]]
    assert max(rows) > 10 * min(rows)


BROKEN = """
from dataclasses import dataclass
import numpy as np
from task.data.partitioners.base import Partitioner
@dataclass(frozen=True)
class Broken(Partitioner):
    def divide(self, part, nodes, seed):
        return {}
"""


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ("[np.arange(len(part))] * nodes", "gives a row to two nodes, or rows that do not exist"),
        ("[np.arange(n, n + 1) + len(part) - 1 for n in range(nodes)]", "rows that do not exist"),
        ("[np.arange(len(part))]", "makes 1 parts for 3 nodes"),
        ("[np.arange(n) for n in range(nodes)]", "some would get none; use fewer nodes, or the iid split"),
    ],
)
def test_what_a_partitioner_returns_is_checked(
    parts: str, problem: str, labels: np.ndarray, store: Store, tmp_path: Path
) -> None:
    broken = added(registry.PACKAGE, {"broken": BROKEN.format(parts)}, tmp_path / "more")
    with broken, pytest.raises(SplitError, match=problem):
        divided(config("broken"), labels, None, 3, store)
