"""Configurations that cannot run, and the sentence that each is refused with before anything is started."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from task.schema import ConfigError
from task.tunings import registry
from thistledown.commands.check import check
from thistledown.commands.run import run
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "thistledown"

BAD = [
    # keys that do not exist
    ("num-server-rnds=2", "there is no key 'num-server-rnds'; did you mean 'num-server-rounds'?"),
    ("loar.ranks='4'", "there is no key 'loar.ranks'; did you mean 'lora.ranks'?"),
    ("lr=0.1", "there is no key 'lr'; did you mean 'learning-rate'?"),
    ("fraction-fit=0.5", "there is no key 'fraction-fit'; did you mean 'fraction-train'?"),
    ("fedprox.mo=0.1", "there is no key 'fedprox.mo'; did you mean 'fedprox.mu'?"),
    ("qqq.zzz=1", "there is no key 'qqq.zzz'"),
    # types
    ("num-server-rounds='ten'", "num-server-rounds must be a whole number, not text 'ten'"),
    ("num-server-rounds=2.5", "num-server-rounds must be a whole number, not 2.5"),
    ("num-server-rounds=true", "num-server-rounds must be a whole number, not true"),
    ("learning-rate='fast'", "learning-rate must be a number, not text 'fast'"),
    ("strategy=3", "strategy must be text, not 3"),
    ("model.offer=1", "model.offer must be true or false, not 1"),
    ("lora.ranks='2,x'", "lora.ranks must be whole numbers separated by ',', such as '2,4,8', or 'auto', not '2,x'"),
    ("lora.ranks=2.5", "lora.ranks must be text with items separated by ',', not 2.5"),
    ("lora.ranks=[2, 'x']", "lora.ranks must be a list of whole numbers, or of texts without ','"),
    ("data.labels=['a|b', 'c']", "data.labels must be a list of whole numbers, or of texts without '|'"),
    ("seed=1979-05-27", "seed must be a whole number"),
    # ranges
    ("num-server-rounds=0", "num-server-rounds must be at least 1, not 0"),
    ("fraction-train=1.5", "fraction-train must be at most 1, not 1.5"),
    ("learning-rate=-1.0", "learning-rate must be at least 0, not -1"),
    ("learning-rate=nan", "learning-rate must be a finite number, not nan"),
    ("learning-rate=1e999", "learning-rate must be a finite number, not inf"),
    ("lora.ranks='8,0'", "lora.ranks must be at least 1, not 0"),
    ("lora.dropout=1.0", "lora.dropout must be at most 0.9, not 1"),
    ("fedprox.mu=-1", "fedprox.mu must be at least 0, not -1"),
    ("simulation.num-supernodes=0", "simulation.num-supernodes must be at least 1, not 0"),
    ("simulation.num-cpus=4096", "simulation.num-cpus = 4096, but this process may use"),
    ("simulation.num-gpus=64.0", "simulation.num-gpus = 64, but this machine has"),
    # choices
    ("tuning='lroa'", f"tuning must be one of {', '.join(registry.names())}, not 'lroa'; did you mean 'lora'?"),
    ("tuning='dora' lora.ranks='2,4'", "tuning = 'dora' has one rank for all nodes; lora.ranks must be one number"),
    ("tuning='dora' lora.ranks='auto'", "tuning = 'dora' has one rank for all nodes; lora.ranks must be one number"),
    ("task.kind='image'", "task.kind must be one of causal-lm, image-classification, "),
    (
        "optimizer='adam'",
        "sgd, adamw-8bit, paged-adamw-8bit, not 'adam'; did you mean 'adamw'?",
    ),
    ("data.partitioner='dirchlet'", "not 'dirchlet'; did you mean 'dirichlet'?"),
    ("half.dtype='int8' wrappers='half'", "half.dtype must be one of bfloat16, float16, not 'int8'"),
    ("strategy='fedavgg'", "there is no strategy 'fedavgg'; did you mean 'fedavg'? (there are "),
    ("wrappers='halve'", "there is no wrapper 'halve'; did you mean 'half'? (there are "),
    # values that do not go together
    ("strategy='rbla' tuning='bias'", "strategy = 'rbla' needs tuning = 'lora', not 'bias'"),
    ("strategy='zero-pad' tuning='full'", "strategy = 'zero-pad' needs tuning = 'lora', not 'full'"),
    ("task.kind='text-classification' data.name='x'", "model.name = 'embedded' is an image model"),
    ("task.kind='text-classification' model.name='x'", "data.name = 'digits' are images"),
    ("data.partitioner='natural' data.name='x.csv'", "data.partitioner = 'natural' needs data.id-column"),
    ("lora.ranks=''", "lora.ranks must be whole numbers separated by ',', such as '2,4,8', or 'auto', not ''"),
    ("lora.auto-ranks='8,4'", "lora.auto-ranks must be ascending"),
    ("lora.alpha=16.0 lora.scaling=1.0", "lora.alpha = 16 and lora.scaling = 1 are two ways to say one thing"),
    ("lora.alpha=16.0 lora.ranks='auto'", "lora.alpha = 16 needs a rank to be divided by, and lora.ranks is 'auto'"),
    ("lora.rslora=true", "lora.rslora says how lora.alpha is divided; set lora.alpha"),
    ("warmup-rounds=15", "warmup-rounds = 15 leaves no round of num-server-rounds = 15 at learning-rate"),
    ("learning-rate-min=0.1", "learning-rate-min = 0.1 is above learning-rate = 0.005"),
    ("momentum=0.9", "momentum is an option of optimizer = 'sgd'"),
    ("data.validation-fraction=0.5 data.test-fraction=0.5", "leave no rows to train on"),
    ("evaluate='nodes' data.holdout=0.0", "evaluate = 'nodes' needs data.holdout above 0"),
    ("output-dir='results'", "output-dir = 'results' must be an absolute path"),
    # the command line itself
    ("seed=one", "-c seed=one: not a TOML value; true, 3, 0.5, or text in quotes: seed='one'"),
    ("strategy='rbla", "-c strategy='rbla: not a TOML value; true, 3, 0.5, or text in quotes"),
    ("seed=1 num-server-rounds", "-c: cannot read 'num-server-rounds'; write key=value pairs"),
    ("preset.toml", "-c: cannot read 'preset.toml'; write key=value pairs"),
]

BAD_PRESETS = [
    ('strategy = "rbla', "is not valid TOML"),
    ("[data]\nnmae = 'x'", "there is no key 'data.nmae'; did you mean 'data.name'?"),
    ("[lora]\nranks = [2, 4.5]", "lora.ranks must be a list of whole numbers, or of texts without ','"),
    ("[strategy]\nname = 'rbla'", "there is no key 'strategy.name'"),
]

FOUND_LATER = [
    ("data.name='/nowhere/rows.csv'", "there is no file or folder /nowhere/rows.csv"),
    ("model.name='/nowhere/model'", "model.name = '/nowhere/model': there is no such folder"),
    ("simulation.num-supernodes=500", "750 rows cannot be divided among 500 nodes by the dirichlet split"),
    ("lora.targets='query'", "lora.targets: no linear layer or plain convolution ends in query; there are fc1"),
]


def problems(here: Path, *overrides: str, preset: str | None = None, app: Path = APP) -> list[str]:
    with pytest.raises(ConfigError) as error:
        Settings.read(app, preset, overrides, here)
    return error.value.problems


@pytest.mark.parametrize(("override", "said"), BAD, ids=[override for override, _ in BAD])
def test_override_is_refused(override: str, said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in problems(tmp_path, override))


@pytest.mark.parametrize(("text", "said"), BAD_PRESETS)
def test_preset_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    assert any(said in problem for problem in problems(tmp_path, preset="mine.toml"))


@pytest.mark.first(1)
@pytest.mark.parametrize(("override", "said"), FOUND_LATER, ids=[override for override, _ in FOUND_LATER])
def test_check_refuses_what_data_and_model_rule_out(override: str, said: str, tmp_path: Path) -> None:
    settings = Settings.read(APP, None, [override], tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check(settings, lambda line: None)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "lr=0.1 tuning='lroa'", "num-server-rounds=0", "strategy='rblaa'")
    assert len(found) == 4


def test_unreadable_preset_and_override_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("= 3")
    assert len(problems(tmp_path, "seed=one", preset="mine.toml")) == 2


def test_preset_that_does_not_exist(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, preset="mixed-rank")
    assert problem.startswith("there is no preset 'mixed-rank'; did you mean 'mixed-ranks'? (there are ag-news, ")


def test_folder_that_is_no_app(tmp_path: Path) -> None:
    assert "is not a Flower app" in problems(tmp_path, app=tmp_path)[0]


def test_key_that_the_app_does_not_declare(tmp_path: Path) -> None:
    """Flower refuses such a key with a bare code; a strategy's author has forgotten its table."""
    declared = (APP / "pyproject.toml").read_text().replace("[tool.flwr.app.config.fedprox]\nmu", "[tool.other]\nmu")
    (tmp_path / "pyproject.toml").write_text(declared)
    [problem] = problems(tmp_path, "strategy='fedprox'", app=tmp_path)
    assert problem == f"the key 'fedprox.mu' is not declared in [tool.flwr.app.config] of {tmp_path / 'pyproject.toml'}"


def test_simulated_nodes_have_no_data_of_their_own(tmp_path: Path) -> None:
    settings = Settings.read(APP, None, ["data.partitioner='none'"], tmp_path)
    with pytest.raises(ConfigError, match="is for deployed nodes"):
        run(settings, lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "check"])
def test_command_exits_2_and_starts_nothing(command: str, tmp_path: Path) -> None:
    arguments = [COMMAND, command, "-c", "lr=0.1 tuning='lroa'"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "checking the configuration\n"
    assert done.stderr.startswith("2 problems in the configuration:\n  - ")
    assert "\n  - there is no key 'lr'; did you mean 'learning-rate'?\n" in done.stderr
    assert not list(tmp_path.iterdir())


MEANT = {  # what people write, and what they mean
    "gradient-accumulation": "micro-batch-size", "gradient-accumulation-steps": "micro-batch-size", "warmup-steps": "",
    "load-in-4bit": "model.quantization",
    "modules-to-save": "", "test-data": "", "fp16=true": "model.dtype", "num_server_rounds": "num-server-rounds",
    "num-epochs": "local-epochs", "per_device_train_batch_size": "batch-size", "lora_r": "lora.ranks",
    "target_modules": "lora.targets", "max-seq-length": "data.max-length", "alpha": "",
    "learning-rte": "learning-rate", "gpu": "device",
}  # fmt: skip
MEANT_VALUES = {
    ("device", "gpu"): "cuda", ("device", "tpu"): "", ("model.dtype", "bf16"): "bfloat16",
    ("model.dtype", "int8"): "", ("tuning", "lroa"): "lora", ("tuning", "qlora"): "lora", ("tuning", "bitfit"): "bias",
    ("optimizer", "adam"): "adamw", ("task.kind", "question-answering"): "",
    ("data.partitioner", "dirichelt"): "dirichlet",
}  # fmt: skip


@pytest.mark.parametrize("written", MEANT)
def test_a_nearest_key_means_the_same_or_there_is_none(written: str, tmp_path: Path) -> None:
    key, _, value = written.partition("=")
    [problem] = problems(tmp_path, f"{key}={value or 1}")
    hint = f"; did you mean '{MEANT[written]}'?" if MEANT[written] else ""
    assert problem == f"there is no key '{key}'{hint}"


@pytest.mark.parametrize(("key", "value"), MEANT_VALUES)
def test_a_nearest_value_means_the_same_or_there_is_none(key: str, value: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, f"{key}='{value}'")
    meant = MEANT_VALUES[key, value]
    assert problem.endswith(f"not '{value}'" + (f"; did you mean '{meant}'?" if meant else ""))


BARE = {  # values without quotes, of keys that take text
    "strategy=fedprox": ("strategy", "fedprox"),
    "wrappers=top-k,half": ("wrappers", "top-k,half"),
    "output-dir=/tmp/some": ("output-dir", "/tmp/some"),
    "lora.ranks=2,4": ("lora.ranks", "2,4"),
    "model.name=owner/some-model": ("model.name", "owner/some-model"),
    "data.labels=no|yes": ("data.labels", "no|yes"),
}


@pytest.mark.parametrize("written", BARE)
def test_text_needs_no_quotes_where_it_can_mean_nothing_else(written: str, tmp_path: Path) -> None:
    key, value = BARE[written]
    assert Settings.read(APP, None, [written], tmp_path).config.flat[key] == value


@pytest.mark.slow
def test_outputs_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("run", "check"):
        for place in ("/proc/nope", tmp_path / "file" / "below"):
            arguments = [COMMAND, command, "-c", f"output-dir={place}"]
            done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert f"output-dir = '{place}' cannot be written: " in done.stderr
            assert "Traceback" not in done.stderr
