"""Batches that are scored at a time: the bits of one after another, for every tuning of every kind of model."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tuned import FITTING, Sample, samples

from task.data.prepared import prepare
from task.prediction.outputs import row_losses
from task.storage.store import server_store
from task.training.parallel_evaluation import MOST, batches_at_once, evaluate_in_parallel, portion
from task.training.trainer import evaluate


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


@pytest.mark.first(1)
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_scores_are_those_of_one_after_another(
    kinds: dict[str, Sample], kind: str, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task.kinds.base.EVALUATION_ROWS", MOST * 2)
    monkeypatch.setattr("task.training.perplexity.LOGITS", MOST * 20 * 32)
    model = kinds[kind].build(tuning)
    rows = prepare(model.config, kinds[kind].base.folder, server_store()).test
    asked: list[int] = []
    model.module.register_forward_pre_hook(lambda *_: asked.append(threading.get_ident()))
    alone = evaluate(model, rows, "cpu")
    batches = len(asked)
    assert batches > 1
    for at_once in (2, 4):
        assert evaluate(model, rows, "cpu", at_once) == alone
    assert len(asked) == 3 * batches
    assert set(asked[:batches]) == {threading.get_ident()}
    assert threading.get_ident() not in asked[batches:]


@pytest.mark.judged
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_the_losses_of_rows_are_those_of_rows_alone(kinds: dict[str, Sample], kind: str) -> None:
    """Single updates are judged by the loss of each label, from one pass over all rows."""
    model = kinds[kind].build("lora")
    rows = prepare(model.config, kinds[kind].base.folder, server_store()).test
    alone = [evaluate(model, rows.select(np.array([row])), "cpu")["loss"] for row in range(len(rows))]
    assert len(set(alone)) > 1
    assert row_losses(model.module, rows, "cpu") == pytest.approx(alone, abs=1e-5)


def test_as_many_are_at_work_as_are_asked_for_and_each_as_it_would_be_alone() -> None:
    """They wait for each other; none has gradients, and all have the threads of the process."""
    together = threading.Barrier(3)

    def score(number: int) -> tuple[int, bool, int]:
        together.wait(timeout=30)
        return number, torch.is_grad_enabled(), torch.get_num_threads()

    assert torch.is_grad_enabled()
    expected = [(number, False, torch.get_num_threads()) for number in range(6)]
    assert evaluate_in_parallel(score, range(6), 3) == expected


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_one_of_them_raises_is_raised(at_once: int) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate_in_parallel(lambda number: (1 / number,), [1, 0, 2], at_once)


def test_cores_are_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task.training.parallel_evaluation.cores", lambda: 6)
    assert [batches_at_once("cpu", threads) for threads in (1, 2, 4, 6, 8)] == [6, 3, 1, 1, 1]
    assert batches_at_once("cuda:1", 1) == 1
    monkeypatch.setattr("task.training.parallel_evaluation.cores", lambda: 64)
    assert batches_at_once("cpu", 1) == MOST
    assert (portion(256, "cpu"), portion(256, "cuda")) == (256 // MOST, 256)


def test_a_single_batch_is_scored_without_another_thread() -> None:
    assert evaluate_in_parallel(lambda _: (threading.get_ident(),), [0], 4) == [(threading.get_ident(),)]
    assert evaluate_in_parallel(lambda _: (threading.get_ident(),), (), 4) == []
