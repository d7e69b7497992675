"""What `thistledown check` says of memory, from shapes alone, against what autograd really keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
from tuned import Sample, samples

from client_app.trial import _activations
from task.data.stand_in import stand_in
from task.models.model import build
from task.training.checkpointing import checkpointed
from task.training.uncached import uncached
from thistledown.estimates.memory import kept_for_backward, memory


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(("kind", "tuning"), [("llama", "lora"), ("vit", "lora"), ("bert", "full")])
def test_activations_are_what_autograd_keeps(
    kinds: dict[str, Sample], kind: str, tuning: str, recomputed: bool
) -> None:
    config = replace(kinds[kind].config(tuning), gradient_checkpointing=recomputed, batch_size=3)
    model = build(kinds[kind].base, config, 4, "cpu")
    rows = stand_in(config, kinds[kind].base.folder)
    batch = rows.batch([len(rows) - 1] * 3)

    def work() -> None:
        with uncached(model.module), checkpointed(model.module, recomputed):
            model.module.train()(**batch)

    really = _activations(model, work)
    said = kept_for_backward(model, config, rows)
    assert really <= said <= 1.1 * really  # with a mask, which rows of one length go without


def test_a_tuning_that_calls_layers_has_memory_too(kinds: dict[str, Sample]) -> None:
    config, base = kinds["llama"].config("ssf"), kinds["llama"].base
    said, *_ = memory(base, config, 0, stand_in(config, base.folder))
    assert said.startswith("memory    about ")
