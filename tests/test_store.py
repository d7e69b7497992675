"""Stores: folders that appear whole or not at all, also where two processes make the same one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from task.seeds import derive
from task.storage.seal import SEAL
from task.storage.store import Store, StoreError, cache_home, node_store, recipe_hash, server_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def contents(store: Store) -> list[str]:
    """All but the hashes."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.name != SEAL)


def test_a_folder_appears_when_it_is_whole(store):
    with store.made("data", "key") as draft:
        assert draft is not None
        assert list(draft.iterdir()) == []
        (draft / "rows").write_text("1 2 3")
        assert not store.path("data", "key").exists()
    assert (store.path("data", "key") / "rows").read_text() == "1 2 3"
    assert contents(store) == ["data", "data/key", "data/key/rows"]


def test_what_is_there_is_not_made_again(store):
    for _ in range(2):
        with store.made("data", "key") as draft:
            if draft is not None:
                (draft / "rows").write_text("once")
    with store.made("data", "key") as draft:
        assert draft is None


def half_made(store: Store) -> None:
    with store.made("data", "key") as draft:
        assert draft is not None
        (draft / "rows").write_text("half")
        raise ZeroDivisionError


def test_an_error_inside_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError):
        half_made(store)
    assert contents(store) == ["data"]
    with store.made("data", "key") as draft:
        assert draft is not None


def test_an_interruption_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt), store.made("data", "key"):
        raise KeyboardInterrupt
    assert contents(store) == ["data"]


def test_the_first_of_two_makers_wins(store):
    with store.made("data", "key") as slow:
        assert slow is not None
        (slow / "rows").write_text("slow")
        with store.made("data", "key") as quick:
            assert quick is not None
            assert quick != slow
            (quick / "rows").write_text("quick")
    assert (store.path("data", "key") / "rows").read_text() == "quick"
    assert contents(store) == ["data", "data/key", "data/key/rows"]


MAKER = """
import sys, time
from pathlib import Path
from task.storage.store import Store

store = Store(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(40):
    with store.made("data", str(number)) as draft:
        if draft is not None:
            for part in range(5):
                (draft / str(part)).write_text(sys.argv[2])
    parts = [path.read_text() for path in sorted(store.path("data", str(number)).glob("[0-9]"))]
    assert len(parts) == 5 and len(set(parts)) == 1, parts
print(store.id)
"""


def test_two_processes_never_see_half_a_folder(store):
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(store.root), word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for word in ("one", "two")
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    said = [maker.communicate(timeout=60)[0].strip() for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0]
    assert said[0] == said[1] == store.id
    assert not [name for name in contents(store) if "/." in name]


def test_a_store_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"), Store(tmp_path / "file").made("data", "key"):
        raise AssertionError("unreachable")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write")
def test_a_store_that_cannot_be_written():
    with pytest.raises(StoreError, match=r"cannot write to the store /proc/self/store"):
        _ = Store(Path("/proc/self/store")).id


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError), Store(tmp_path / "store").made("data", "key"):
        raise AssertionError("unreachable")
    tmp_path.chmod(0o700)


def test_what_is_there_can_be_used_without_writing(store):
    with store.made("data", "key"):
        pass
    before = contents(store)
    with store.made("data", "key") as draft:
        assert draft is None
    assert contents(store) == before


def test_the_id_stays_and_differs_between_stores(tmp_path):
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    assert first.id == first.id == Store(tmp_path / "a").id
    assert len(first.id) == 32
    assert first.id != second.id


def test_where_stores_are(monkeypatch, tmp_path):
    monkeypatch.setenv("THISTLEDOWN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_home() == tmp_path / "own"
    assert server_store().root == tmp_path / "own" / "server"
    assert node_store().root == tmp_path / "own" / "node"
    assert node_store("~/mine").root == tmp_path / "home" / "mine"
    monkeypatch.setenv("THISTLEDOWN_CACHE", "~/cache")
    assert cache_home() == tmp_path / "home" / "cache"
    monkeypatch.delenv("THISTLEDOWN_CACHE")
    assert cache_home() == tmp_path / "xdg" / "thistledown"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_home() == tmp_path / "home" / ".cache" / "thistledown"


def test_a_recipe_has_one_hash():
    assert recipe_hash({"a": 1, "b": (2, 3)}) == recipe_hash({"b": [2, 3], "a": 1})
    assert recipe_hash({"a": 1}) != recipe_hash({"a": 2})
    assert len(recipe_hash([])) == 24


def test_seeds_follow_from_parts_their_order_and_their_types():
    parts: list[tuple[int | str, ...]] = [(0,), (1,), ("1",), (1, 2), (2, 1), (12,), ("a", "b"), ("ab",), (0, "")]
    seeds = [derive(*each) for each in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(7, "train", 3, "node") == 6944975540531144178  # pinned: old runs must stay repeatable
