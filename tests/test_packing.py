"""Packed rows, and steps of rows of similar length: the same losses and gradients, with less that is filled up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import byte_tokenizer, language_model
from test_causal import config, prepared

from task.config import Model, TaskConfig
from task.data.encoding.packing import fill, packed
from task.data.rows import IGNORED, Completions, Rows, Tokens
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.storage.store import Store
from task.training.batches import Unsuited, batches
from task.training.dry_run import DryRunError, dry_run
from task.training.trainer import Trainer

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = language_model(tmp_path_factory.mktemp("model"))
    return server_base(Model(name=str(folder)), Store(folder / "store"))


def uneven(count: int = 24, seed: int = 0) -> Rows:
    """Rows of 2 to 40 tokens, of which some at the end are learned."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 41, count)
    ids = random.integers(3, 40, lengths.sum()).astype(np.int32)
    prompts = np.array([random.integers(1, length) for length in lengths])
    tokens = Tokens(ids, np.concatenate([[0], lengths.cumsum()]), pad=0)
    return Rows(Completions(tokens, prompts), np.zeros(count, np.int64), ())


def trained(model: TunedModel, settings: TaskConfig, rows: Rows) -> dict[str, Any]:
    metrics = Trainer(settings, rows, 0).fit(model)
    return {"loss": metrics["train-loss"], "steps": metrics["steps"], **model.trained}


# ------------------------------------------------------------------------------- packing
@pytest.mark.parametrize("most", [1, 40, 64, 10**6])
def test_packs_hold_every_row_once_and_no_more_than_they_may(most: int) -> None:
    rows = uneven()
    packs = fill(rows.lengths, most)
    assert sorted(row for pack in packs for row in pack) == list(range(len(rows)))
    assert all(len(pack) == 1 or rows.lengths[pack].sum() <= most for pack in packs)
    batch = packed(rows, torch.arange(len(rows)), most, "cpu")
    alone = rows.batch(range(len(rows)))
    assert sorted(batch["labels"][batch["labels"] != IGNORED]) == sorted(alone["labels"][alone["labels"] != IGNORED])
    for number, pack in enumerate(packs):
        steps = [step for row in pack for step in range(rows.lengths[row])]
        assert batch["position_ids"][number].tolist() == steps + [0] * (batch["labels"].shape[1] - len(steps))


@pytest.mark.parametrize("micro", [0, 3])
def test_packed_steps_are_those_of_rows_apart(micro: int, base: Base) -> None:
    """In float64, but for the loss, which transformers computes in float32."""
    rows = uneven()
    found = []
    for packing in (False, True):
        settings = replace(
            config(tuning="lora", max_length=64),
            packing=packing,
            local_steps=4,
            batch_size=8,
            micro_batch_size=micro,
            optimizer="sgd",
            learning_rate=0.1,
        )
        model = build(base, settings, 4, "cpu")
        model.module.double()
        found.append(trained(model, settings, rows))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert np.allclose(np.asarray(torch.as_tensor(value).detach()), torch.as_tensor(found[1][name]).detach(),
                           rtol=1e-5, atol=1e-8), name  # fmt: skip


def test_losses_without_gradients_are_those_of_rows_apart(base: Base) -> None:
    rows, found = uneven(), []
    for packing in (False, True):
        settings = replace(config(max_length=64), packing=packing, local_steps=3, batch_size=8)
        model = build(base, settings, 0, "cpu")
        found.append([loss() for loss in Trainer(settings, rows, 0).losses(model)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES | {"num_key_value_heads": 1, "sliding_window": 8},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "gemma2": SIZES | {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
}  # fmt: skip
REFUSED = ("bloom", "opt")  # these look at an attention mask alone


@pytest.mark.first(2)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_dry_run_refuses_models_that_see_the_row_in_front(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = CONFIG_MAPPING[kind](vocab_size=320, **ARCHITECTURES[kind])
    module = AutoModelForCausalLM.from_config(shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    module.save_pretrained(tmp_path / "base")
    byte_tokenizer(tmp_path / "base")
    base = server_base(Model(name=str(tmp_path / "base")), Store(tmp_path / "store"))
    settings = replace(config(max_length=48), packing=True, learning_rate=1e-4)
    model, trainer = build(base, settings, 0, "cpu"), Trainer(settings, uneven(), 0)
    if kind in REFUSED:
        with pytest.raises(DryRunError, match="packing = true does not fit this model"):
            dry_run(model, trainer)
    else:
        dry_run(model, trainer)


def test_what_cannot_be_packed_is_refused(base: Base) -> None:
    with pytest.raises(ConfigError) as error:
        TaskConfig.read({"packing": True, "group-by-length": True})
    assert "packing = true is for language models" in str(error.value)
    assert "group-by-length = true is for texts" in str(error.value)
    flat = {"task.kind": "causal-lm", "model.name": "given", "data.name": "given", "data.partitioner": "iid"}
    with pytest.raises(ConfigError, match="tuning = 'prompt' puts tokens in front of every row"):
        TaskConfig.read(flat | {"packing": True, "tuning": "prompt"})
    settings = replace(config(max_length=64), packing=True, group_by_length=True)

    class Steps:
        def fit(self, *_: object) -> dict[str, float]:
            raise AssertionError

    with pytest.raises(Unsuited, match="packing = true and group-by-length = true: example-privacy draws and clips"):
        Trainer(settings, uneven(), 0, private=Steps()).fit(build(base, settings, 0, "cpu"))


# ------------------------------------------------------------------------------- rows of similar length
@pytest.mark.parametrize(("rows", "size"), [(24, 8), (97, 4), (1000, 8), (3, 8), (8, 8)])
def test_rows_of_similar_length_share_a_step(rows: int, size: int) -> None:
    settings = replace(config(), batch_size=size, local_epochs=2)
    lengths = np.random.default_rng(0).integers(2, 500, rows)
    plain, grouped = (list(batches(settings, rows, 5, lengths=some)) for some in (None, lengths))
    assert [len(batch) for batch in grouped] == [len(batch) for batch in plain]
    epoch = len(grouped) // 2
    assert all(sorted(torch.cat(part).tolist()) == list(range(rows)) for part in (grouped[:epoch], grouped[epoch:]))
    again = list(batches(settings, rows, 5, lengths=lengths))
    assert all(torch.equal(one, other) for one, other in zip(grouped, again, strict=True))
    filled = [sum(len(batch) * lengths[batch].max() for batch in some) - 2 * lengths.sum() for some in (plain, grouped)]
    if rows == 1000:
        assert filled[1] < 0.2 * filled[0]


@pytest.mark.judged
@pytest.mark.slow
def test_a_run_may_group_and_pack(base: Base, tmp_path: Path) -> None:
    rows = prepared(tmp_path, base.folder)
    settings = replace(config(), packing=True, group_by_length=True, local_steps=6, batch_size=4, learning_rate=0.01)
    model = build(base, settings, 0, "cpu")
    before = Trainer(replace(settings, learning_rate=0.0), rows, 0).fit(model)["train-loss"]
    assert Trainer(settings, rows, 0).fit(model)["train-loss"] < before
