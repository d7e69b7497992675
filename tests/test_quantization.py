"""Bases in 8 and 4 bits: what they compute, how a federation learns on them, what is saved, what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, data, made, settings
from in_process import InProcessGrid, equal, federate, sent
from samples import language_base, write_table
from test_causal import ROWS, based, flat, prepared

import client_app
import strategies
from client_app.public_errors import NodeError, with_own_quantization
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.compatibility import problems
from strategies.exchange.dry_run import rehearse
from strategies.protocol.instructions import write
from task.config import Model, TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.models.base import Base, BaseError
from task.models.model import TunedModel, build
from task.models.quantization import numbers_of
from task.models.saving import save
from task.schema import ConfigError
from task.storage.store import Store
from task.training.dry_run import _Once
from task.training.trainer import Trainer, evaluate
from task.tunings import registry
from task.tunings.parts.trainable import is_transposed

pytest.importorskip("bitsandbytes")
BITS = ("8bit", "4bit")
FITTING = ("lora", "dora", "ia3", "prompt", "prefix", "norm", "head", "adapter")  # on a Llama
WRITING = {"flora", "fedex-lora", "sa-fedlora", "slora", "ferret"}
NEAR = {"8bit": 0.05, "4bit": 1e-3}  # of the largest logit
OF_TEXTS = [name for name, one in ARCHITECTURES.items() if one.kind != "image-classification"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return based(language_base(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return prepared(tmp_path_factory.mktemp("rows"), base.folder)


def config(bits: str = "none", tuning: str = "lora", **options: object) -> TaskConfig:
    named = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    return TaskConfig.read(flat(Path("given")) | {"model.quantization": bits, "tuning": tuning} | named)


def logits(model: TunedModel, rows: Rows) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.module.eval()(**rows.batch([0, 1, 2])).logits)


# ------------------------------------------------------------------------------------------- what they compute
def test_a_layer_in_4_bits_multiplies_by_the_nearest_of_16_values() -> None:
    """Against a slow reference: blocks of 64 weights, each in units of its largest, as the nearest value of NF4."""
    from bitsandbytes.functional import get_4bit_type

    from task.models.quantization import _in_4_bits

    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 6)
    made_layer = _in_4_bits(sys.modules["bitsandbytes.nn"], layer, Model(double_quantization=False), "cpu")
    blocks = layer.weight.detach().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    values = get_4bit_type("nf4", device="cpu")
    nearest = values[(blocks / largest)[..., None].sub(values).abs().argmin(-1)] * largest
    inputs = torch.randn(3, 128)
    expected = torch.nn.functional.linear(inputs, nearest.reshape(6, 128), layer.bias)
    torch.testing.assert_close(made_layer(inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_only_frozen_linear_layers_are_quantised(bits: str, base: Base) -> None:
    model = build(base, config(bits), 4, "cpu")
    whole = build(base, config(), 4, "cpu")
    wide = {name for name, tensor in model.frozen.items() if tensor.is_floating_point()}
    assert all(not name.endswith("_proj.weight") for name in wide)
    assert all(torch.equal(model.frozen[name], whole.frozen[name]) for name in wide)
    assert model.frozen.keys() == whole.frozen.keys()
    assert sum(name.endswith("_proj.weight") for name in model.frozen) == 14
    assert equal(dict(model.trained), dict(whole.trained))
    assert {tensor.dtype for tensor in model.trained.values()} == {torch.float32}
    counts = [sum(map(numbers_of, one.module.parameters())) for one in (model, whole)]
    assert counts[0] == counts[1]


@pytest.mark.judged
@pytest.mark.each_value
@pytest.mark.parametrize("tuning", FITTING)
@pytest.mark.parametrize("bits", BITS)
def test_tunings_train_on_them(bits: str, tuning: str, base: Base, rows: Rows) -> None:
    settings = config(bits, tuning, local_steps=20, learning_rate=0.02)
    model = build(base, settings, 4, "cpu")
    before, frozen = evaluate(model, rows, "cpu")["loss"], {n: t.detach().clone() for n, t in model.frozen.items()}
    Trainer(settings, rows, 0).fit(model)
    assert evaluate(model, rows, "cpu")["loss"] < before
    assert equal(dict(model.frozen), frozen)


@pytest.mark.parametrize("bits", BITS)
def test_a_score_in_between_changes_no_bit_of_training(bits: str, base: Base, rows: Rows) -> None:
    """bitsandbytes would repack 4-bit weights for some CPUs when a model is scored."""
    scored, alone = (build(base, config(bits, local_steps=3), 4, "cpu") for _ in range(2))
    evaluate(scored, rows, "cpu", at_once=2)
    for model in (scored, alone):
        Trainer(config(bits, local_steps=3), rows, 0).fit(model)
    assert equal(dict(scored.trained), dict(alone.trained))


@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["gpt2", *(name for name in OF_TEXTS if name != "gpt2")])
def test_architectures_compute_what_the_rounded_weights_compute(tmp_path: Path, name: str) -> None:
    """In 4 bits what the plain model computes with these weights; in 8 bits inputs are rounded too."""
    made(name, tmp_path / name)
    files, store = data(tmp_path), Store(tmp_path / "store")
    base = Base(str(tmp_path / name), tmp_path / name, "")
    plain = settings(name, tmp_path / name, files[ARCHITECTURES[name].kind], "lora")
    rows = prepare(plain, base.folder, store).train
    whole = logits(build(base, plain, 2, "cpu"), rows)
    for bits, near in NEAR.items():
        quantised = {"model.quantization": bits}
        own = settings(name, base.folder, files[ARCHITECTURES[name].kind], "lora", **quantised)
        model = build(base, own, 2, "cpu")
        expected = whole if bits == "8bit" else logits(rounded(model, build(base, plain, 2, "cpu")), rows)
        apart = float((logits(model, rows) - expected).abs().max() / expected.abs().max())
        assert apart < near, (bits, apart)
        rehearse(strategies.load("fedavg"), own, base, rows, "cpu")


def rounded(model: TunedModel, plain: TunedModel) -> TunedModel:
    """The plain model with the weights that the 4-bit layers of `model` stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, Linear4bit)}
    assert layers
    for name, layer in layers.items():
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        own = plain.module.get_submodule(name)
        own.weight.data.copy_(weight.T if is_transposed(own) else weight)  # type: ignore[union-attr, operator]
    return plain


def test_images_are_refused(vision: Path) -> None:
    """Convolutional networks call linear layers with four dimensions, which bitsandbytes does not take."""
    with pytest.raises(ConfigError, match=r"model\.quantization = '8bit' is for text models"):
        TaskConfig.read({"model.name": str(vision), "model.quantization": "8bit"})


def test_a_dry_run_tries_other_tunings_on_the_base_as_it_was(base: Base, rows: Rows) -> None:
    settings = config("8bit")
    once = _Once(build(base, settings, 4, "cpu"), Trainer(settings, rows.select([0, 1]), 0), lambda trainer: trainer)
    assert once._with("full").model.config.model.quantization == "none"
    assert once._with("norm").model.config.model.quantization == "8bit"


# ------------------------------------------------------------------------------------------- federations
@pytest.mark.judged
@pytest.mark.slow
def test_federations_on_them_learn_what_float32_learns(tmp_path: Path, base: Base) -> None:
    file = write_table(tmp_path / "rows.jsonl", ROWS)
    options = flat(file, train_rows=0, validation_rows=0, test_rows=0) | {"model.name": str(base.folder)}
    options |= {"num-server-rounds": 3, "local-steps": 12, "learning-rate": 0.02, "lora.ranks": "4"}
    learned = {}
    for bits in ("none", *BITS):
        rounds = federate(tmp_path / bits, options | {"model.quantization": bits}).rounds
        learned[bits] = rounds[0]["loss"] - rounds[-1]["loss"]
    assert learned["none"] > 0.2
    for bits in BITS:  # other kernels and rounding change it by a tenth; half of it leaves room for five times that
        assert learned[bits] > learned["none"] / 2, learned


@pytest.mark.slow
def test_nodes_of_a_cohort_hold_the_base_as_they_like(tmp_path: Path, base: Base) -> None:
    file = write_table(tmp_path / "rows.jsonl", ROWS)
    options = flat(file, train_rows=0, validation_rows=0, test_rows=0) | {"model.name": str(base.folder)}
    grid = InProcessGrid(client_app.app, 3, {0: {"quantization": "4bit"}, 1: {"quantization": "8bit"}})
    outcome = federate(tmp_path / "out", options | {"num-server-rounds": 2, "lora.ranks": "4"}, grid)
    assert not any(line["refused"] for entry in outcome.rounds[1:] for line in entry["nodes"])
    updates = [sent(exchange.reply) for exchange in grid.of("train")[:3]]
    assert {tensor.dtype for update in updates for tensor in update.values()} == {torch.float32}
    assert not any(equal(updates[0], other) for other in updates[1:])


# ------------------------------------------------------------------------------------------- what is saved
@pytest.mark.parametrize("bits", BITS)
def test_adapters_load_on_the_base_as_it_was(bits: str, base: Base, rows: Rows, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    settings = config(bits, local_steps=5, learning_rate=0.02)
    model, plain = build(base, settings, 4, "cpu"), build(base, config(), 4, "cpu")
    Trainer(settings, rows, 0).fit(model)
    save(model, tmp_path / "tuned", str(base.folder))
    plain.write({name: tensor.detach() for name, tensor in model.trained.items()})
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    batch = rows.batch([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, logits(plain, rows), rtol=1e-5, atol=1e-6)
    assert not hasattr(loaded.config, "quantization_config")


def test_tunings_of_the_base_itself_are_saved_with_its_own_weights(base: Base, rows: Rows, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    settings = config("4bit", "head", local_steps=5, learning_rate=0.02)
    model = build(base, settings, 0, "cpu")
    Trainer(settings, rows, 0).fit(model)
    save(model, tmp_path / "tuned", str(base.folder))
    loaded, whole = (AutoModelForCausalLM.from_pretrained(place) for place in (tmp_path / "tuned", base.folder))
    original = dict(whole.named_parameters())
    for name, parameter in loaded.named_parameters():
        expected = model.trained.get(name, original[name])
        assert torch.equal(parameter, expected), name


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("name", strategies.names())
def test_strategies_that_write_into_the_base_refuse_it(name: str) -> None:
    strategy = strategies.load(name)
    assert strategy.writes_base == (name in WRITING)
    said = [problem for problem in problems(strategy, config("4bit")) if "writes into the base" in problem]
    assert bool(said) == (name in WRITING)
    if "replay" in vars(type(strategy)):
        assert strategy.writes_base
    assert not any("writes into" in problem for problem in problems(strategy, config()))


def test_strategies_write_only_where_their_options_say_so() -> None:
    assert not strategies.load("slora", sparse_rounds=0).writes_base
    assert not strategies.load("sa-fedlora", initiating_rounds=0, remainder="drop").writes_base
    with pytest.raises(TypeError, match="it must say whether writes_base is true"):
        type("Silent", (Algorithm,), {"replay": lambda self, model, entry: None})


@pytest.mark.parametrize("tuning", registry.names())
def test_tunings_of_the_quantised_weights_refuse_it(tuning: str) -> None:
    if tuning in ("full", "ssf", "lora-sb"):
        with pytest.raises(ConfigError, match=f"tuning = '{tuning}' changes or reads the weights"):
            config("8bit", tuning)
    else:
        config("8bit", tuning)


def test_other_conflicts_are_refused() -> None:
    with pytest.raises(ConfigError, match="tuning = 'lora' changes or reads the weights"):
        config("4bit", lora__init="pissa")
    with pytest.raises(ConfigError, match=r"compute-dtype = 'bfloat16' is an option of model.quantization = '4bit'"):
        config("8bit", model__compute_dtype="bfloat16")
    private = strategies.load("fedavg", [strategies.load_wrapper("example-privacy", clip=1.0)])
    assert any("which bitsandbytes does not compute" in said for said in problems(private, config("4bit")))


def test_where_bitsandbytes_is_missing(monkeypatch: pytest.MonkeyPatch, base: Base) -> None:
    settings, says = (
        config("4bit"),
        r"'4bit' needs the package bitsandbytes, .*: pip install 'thistledown\[quantization\]'",
    )
    monkeypatch.setattr("task.model_settings.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=says):
        config("4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(BaseError, match=says) as error:
        build(base, settings, 4, "cpu")
    assert "pip install" in error.value.public


def test_a_node_config_is_checked_like_a_configuration(tmp_path: Path, base: Base) -> None:

    def own(strategy: str, value: object) -> TaskConfig:
        instructions = write(config(), strategies.load(strategy), "0" * 32)
        return with_own_quantization(config(), instructions, {"quantization": value})

    assert own("fedavg", "4bit").model == config("4bit").model
    assert own("fedavg", "none") == config()
    for value in ("3bit", 4):
        with pytest.raises(NodeError, match="must be one of none, 8bit, 4bit"):
            own("fedavg", value)
    with pytest.raises(NodeError, match=r"quantization = '8bit': strategy = 'flora' writes into the base"):
        own("flora", "8bit")
