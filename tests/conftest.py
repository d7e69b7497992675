"""Once per session: a store of our own, one thread, Flower's identity.

Fixtures of more than one file: an empty store, the bases that rows are prepared for, strategies in other folders, and
a strategy with a journal beside a model for it; and what keeps servers that are killed from writing.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from entries import Listening, at_the_base
from flwr.supercore.task_identity import TaskIdentity
from fragile import Killed
from samples import WORDS, vision_base

import strategies
from server_app.callbacks.results_folder import Results
from task.models.model import TunedModel, kept_model
from task.storage.store import Store

TOYS = Path(__file__).parent / "toys"

pytest_plugins = ["tiers", "concerning"]


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set for this process and for those it starts."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISTLEDOWN_CACHE", str(cache))
        torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 7, 1
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    return vision_base(tmp_path / "vision")


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real, tiny WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(specials + WORDS)}, unk_token="[UNK]")  # type: ignore[call-arg]
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("words")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=200, **names).save_pretrained(folder)
    return folder


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes the files of a folder strategies, for one test."""
    before = set(sys.modules)

    def find(folder: Path) -> None:
        monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(folder)])
        importlib.invalidate_caches()

    yield find
    for name in set(sys.modules) - before:
        if name.startswith("strategies.") and name.count(".") == 1:
            del sys.modules[name]
            delattr(strategies, name.removeprefix("strategies."))


@pytest.fixture
def toys(found: Callable[[Path], None]) -> None:
    found(TOYS)


@pytest.fixture
def strategy() -> Listening:
    """One that keeps a journal and remembers what it replayed."""
    return Listening()


@pytest.fixture
def model() -> Iterator[TunedModel]:
    """The process's model, at the base; tests after this one get a fresh one."""
    yield at_the_base()
    kept_model.cache_clear()


@pytest.fixture
def dead_servers_write_no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would, as `Killed` ends the block that they run in, and SIGKILL does not."""
    end = Results.on_end
    monkeypatch.setattr(Results, "on_end", lambda own, error: None if isinstance(error, Killed) else end(own, error))
