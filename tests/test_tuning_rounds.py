"""A round of every tuning on every kind of model that it fits: what changes, and what crosses the wire."""

from pathlib import Path

import pytest
import torch
from in_process import federate, raw_bytes, sent
from tuned import FITTING, Sample, cancels, federation, rank_of, samples

from strategies.protocol import wire
from task.models.model import kept_model


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_a_round_changes_what_trains_and_sends_nothing_else(
    kinds: dict[str, Sample], kind: str, tuning: str, tmp_path: Path
) -> None:
    sample = kinds[kind]
    outcome = federate(tmp_path, federation(sample, tuning))
    fresh = sample.build(tuning)
    lines = outcome.rounds[1]["nodes"]
    for exchange, line in zip(outcome.grid.of("train"), lines, strict=True):
        assert not line["refused"]
        assert exchange.reply is not None
        for record in (exchange.request, exchange.reply):
            tensors = sent(record)
            assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in fresh.trained.items()}
            raw = raw_bytes(tensors) + wire.unpack(record).journal_bytes  # what a tuning starts from travels once
            assert raw < wire.size(record) < 1.05 * raw + 3000
    state = outcome.state().tensors
    still = {name for name, tensor in state.items() if torch.equal(tensor, fresh.trained[name])}
    if tuning != "full":  # which has embeddings of words that no row has
        assert not {name for name in still if not cancels(name)}
    used = kept_model(outcome.base, outcome.task.shaping(), rank_of(tuning), "cpu")
    expected = fresh.frozen | {
        name: tensor for entry in outcome.state().journal for name, tensor in entry.tensors.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in used.frozen.items())
