"""LoRA-SB, and Fed-SB that averages it: the equations, what travels, the folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Outcome, federate, sent
from tuned import Sample, samples

from strategies.exchange.replay import replay_start, start_entry
from strategies.protocol import wire
from strategies.protocol.journal import held
from task.data.prepared import prepare
from task.models.model import TunedModel, build
from task.storage.store import server_store

SB = {"tuning": "lora-sb", "lora-sb.targets": "q_proj,v_proj", "local-steps": 2, "num-server-rounds": 2}
SCALING, RANK = 2.0, 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("sb"), SB)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


def started(model: TunedModel) -> TunedModel:
    entry = start_entry(model)
    assert entry is not None
    replay_start(model, entry)
    return model


def logits(outcome: Outcome, module: Any) -> torch.Tensor:
    batch = prepare(outcome.task, outcome.base.folder, server_store()).test.batch(torch.arange(20), "cpu")
    with torch.no_grad():
        return torch.as_tensor(module.eval()(**batch).logits)


def parts(model: TunedModel, layer: str) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """W_0, B, R and A of a layer, in float64."""
    names = (f"{layer}.weight", f"{layer}.sb_B.weight", f"{layer}.sb_R.weight", f"{layer}.sb_A.weight")
    both = model.frozen | model.trained
    return [both[name].detach().double().numpy() for name in names]


@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
@pytest.mark.parametrize("rank", [3, 64])
def test_a_layer_is_the_papers_equation(kinds: dict[str, Sample], kind: str, rank: int) -> None:
    """W_0 x + s B R A x, with the leading singular vectors of W_0; R has a layer's smaller side if that is less."""
    model = started(kinds[kind].build("lora-sb", **{"lora-sb.rank": rank}))
    source = torch.Generator().manual_seed(2)
    model.write({name: 0.3 * torch.randn(tensor.shape, generator=source) for name, tensor in model.trained.items()})
    layers = model.linear_weights()
    for layer in layers:
        w, b, r, a = parts(model, layer)
        own = min(rank, *w.shape)
        assert r.shape == (own, own)
        u, s, vh = np.linalg.svd(w)
        np.testing.assert_allclose(b @ b.T @ w @ a.T @ a, (u[:, :own] * s[:own]) @ vh[:own], rtol=0, atol=1e-5)
        np.testing.assert_allclose(b.T @ b, np.eye(own), rtol=0, atol=1e-5)
        np.testing.assert_allclose(a @ a.T, np.eye(own), rtol=0, atol=1e-5)
        inputs = torch.randn(3, w.shape[1], generator=source)
        adapted: Any = model.module.get_submodule(f"base_model.model.{layer}")
        bias = 0.0 if adapted.bias is None else adapted.bias.detach().double().numpy()
        with torch.no_grad():
            found = adapted.eval()(inputs).double().numpy()
        np.testing.assert_allclose(found, inputs.numpy() @ (w + SCALING * b @ r @ a).T + bias, rtol=1e-4, atol=1e-4)


def test_the_start_is_the_base_and_travels_once(run: Outcome) -> None:
    plain, model = build(run.base, run.task, 0, "cpu"), started(build(run.base, run.task, 0, "cpu"))
    assert torch.equal(logits(run, model.module), logits(run, plain.module))
    shares = [wire.unpack(exchange.request) for exchange in run.grid.of("train")]
    assert [len(share.journal) for share in shares] == [1] * 3 + [0] * 3
    assert sorted(shares[0].journal[0].tensors) == sorted(model.frozen.keys() - linear_and_rest(model))
    assert [entry.digest for entry in run.state().journal] == [shares[0].journal[0].digest]


def linear_and_rest(model: TunedModel) -> set[str]:
    return {name for name in model.frozen if ".sb_" not in name}


def test_only_r_and_the_head_travel(run: Outcome) -> None:
    for exchange in run.grid.of("train"):
        for tensors in (sent(exchange.request), sent(exchange.reply)):
            square = {name: tensor for name, tensor in tensors.items() if ".sb_R." in name}
            assert tensors.keys() - square.keys() == {"classifier.weight", "classifier.bias"}
            assert {tuple(tensor.shape) for tensor in square.values()} == {(RANK, RANK)}
            assert len(square) == 8
    model = held(run.run.strategy, run.base, run.task, run.state())
    for name, tensor in run.state().journal[0].tensors.items():
        assert torch.equal(model.frozen[name].detach(), tensor)


def test_the_mean_of_r_is_the_mean_of_the_products(run: Outcome) -> None:
    exchanges = run.grid.of("train")[3:]
    rows = [line["metrics"]["num-examples"] for line in run.rounds[2]["nodes"]]
    model = held(run.run.strategy, run.base, run.task, run.state())
    for layer in model.linear_weights():
        _, b, r, a = parts(model, layer)
        name = f"{layer}.sb_R.weight"
        mean = np.zeros((b.shape[0], a.shape[1]))
        for exchange, count in zip(exchanges, rows, strict=True):
            trained = sent(exchange.request)[name].double() + sent(exchange.reply)[name].double()
            mean += count / sum(rows) * (b @ trained.numpy() @ a)
        np.testing.assert_allclose(b @ r @ a, mean, rtol=0, atol=1e-7)
        assert np.abs(mean).max() > 1e-4


def test_the_folder_is_a_plain_lora_adapter(run: Outcome) -> None:
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification

    folder = run.folder / "model" / "last"
    assert not (folder / "base").exists()
    assert {name.split(".")[-2] for name in load_file(folder / "adapter_model.safetensors")} == {
        "lora_A", "lora_B", "classifier"
    }  # fmt: skip
    named = PeftConfig.from_pretrained(folder).base_model_name_or_path
    loaded = PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(named), folder)
    trained = held(run.run.strategy, run.base, run.task, run.state()).module
    assert torch.equal(logits(run, loaded), logits(run, trained))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(run, merged), logits(run, trained), rtol=0.0, atol=1e-4)
    assert float((logits(run, trained) - logits(run, build(run.base, run.task, 0, "cpu").module)).abs().max()) > 1e-2
