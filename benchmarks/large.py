"""Memory of a federation on a model that is large: of the server, and of every worker.

A Llama of about half a billion parameters, or of 127 million (`--model 125m`), written here with random weights: memory
and time do not depend on what a model has learned. Two simulated nodes train by `--strategy`, LoRA of rank 8 if not
given, in a run of one round, in the real processes: server, and one worker a node. Every process is watched by /proc.
The same run on a model of 24 million parameters shows what libraries take; what a process has beyond that is given as a
share of the base's bytes. `Rss` has every page of a process once, `Pss` a shared page in parts, `Anonymous` has no page
of a file, so it is what the process would have if the base were free. `--engine local` needs neither Ray nor SuperLink.
`--bits 4bit` quantises, `--checkpointing` computes activations twice; `--dtype bfloat16` halves the base, and takes an
hour on a processor without instructions for it, less with fewer `--tokens`. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.federation import ENGINES

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EVERY = 0.2  # seconds between looks
SIZES = {  # width, width inside, layers, vocabulary
    "24m": (256, 1024, 8, 32_000),
    "125m": (768, 2048, 12, 32_000),
    "0.5b": (1024, 4096, 26, 32_000),
}
SMALL, LARGE = "24m", "0.5b"
STRATEGIES: dict[str, dict[str, object]] = {
    "lora": {"tuning": "lora", "lora.ranks": "8"},
    "full": {"tuning": "full", "optimizer": "sgd"},
    "ferret": {"strategy": "ferret", "tuning": "full", "optimizer": "sgd"},
}
ROWS, WORDS = 48, 20
STEPS, BATCH, LENGTH = 2, 2, 32
FIELDS = ("Rss", "Pss", "Anonymous")


def write_base(folder: Path, size: str, dtype: str) -> int:
    """Write a Llama with random weights and a tokenizer of whole words; return how many bytes its weights have."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    width, inside, layers, words = SIZES[size]
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 128}
    sizes = {"hidden_size": width, "intermediate_size": inside, "num_hidden_layers": layers, "vocab_size": words}
    settings = LlamaConfig(**sizes, **heads, max_position_embeddings=512, tie_word_embeddings=False)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(settings).state_dict().items()}
    torch.manual_seed(0)
    number = getattr(torch, dtype)
    settings.architectures = ["LlamaForCausalLM"]
    settings.save_pretrained(folder)
    drawn = {
        name: torch.ones(shape, dtype=number) if "norm" in name else torch.empty(shape, dtype=number).normal_(std=0.02)
        for name, shape in shapes.items()
    }
    save_file(drawn, folder / "model.safetensors", {"format": "pt"})
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def write_rows(path: Path) -> None:
    """Write texts of random words."""
    texts = (" ".join(f"w{3 + (row * 31 + word * 17) % 900}" for word in range(WORDS)) for row in range(ROWS))
    path.write_text("".join(json.dumps({"instruction": text, "output": "w5 w6 w7"}) + "\n" for text in texts))


def settings_of(folder: Path, strategy: str, bits: str, dtype: str) -> dict[str, object]:
    """Return the settings of the run, by their keys."""
    return {
        "task.kind": "causal-lm", "model.name": str(folder / "base"), "model.dtype": dtype,
        "model.quantization": bits, "data.name": str(folder / "rows.jsonl"),
        "data.max-length": LENGTH, "data.test-split": "", "data.validation-fraction": 0.0, "data.test-fraction": 0.0,
        "data.partitioner": "iid", "evaluate": "nodes", "num-server-rounds": 1,
        "local-steps": STEPS, "batch-size": BATCH, "threads": 1, "simulation.num-supernodes": 2,
        "output-dir": str(folder / "outputs"), **STRATEGIES[strategy],
    }  # fmt: skip


@dataclass
class Peaks:
    """The most that every process of a kind has had, in bytes, by field of /proc, and all processes at one time."""

    server: dict[int, dict[str, int]] = field(default_factory=dict)
    worker: dict[int, dict[str, int]] = field(default_factory=dict)
    together: int = 0  # Pss

    def look(self, parent: psutil.Process, engine: str) -> None:
        """Look at all processes below `parent` once."""
        together = 0
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                found = memory(process.pid)
                together += found["Pss"]
                kind = getattr(self, (_part_in_ray if engine == "ray" else _part_here)(process, parent), None)
                if kind is not None:
                    peaks = kind.setdefault(process.pid, {})
                    for name, now in found.items():
                        peaks[name] = max(now, peaks.get(name, 0))
        self.together = max(self.together, together)


def _part_in_ray(process: psutil.Process, parent: psutil.Process) -> str:
    """Return which part of a run on Ray a process is: `server`, `worker` or another."""
    line = " ".join(process.cmdline())
    return "worker" if "ClientAppActor" in line else "server" if "programs.py simulation" in line else ""


def _part_here(process: psutil.Process, parent: psutil.Process) -> str:
    """Return it for a run without Ray: the command is the server, and has forked a process that forks the workers."""
    if process == parent:
        return "server"
    above = process.parent()
    return "worker" if above is not None and above.ppid() == parent.pid else ""


def memory(pid: int) -> dict[str, int]:
    """Return a process's memory in bytes: `Rss`, `Pss`, and `Anonymous`, which is in no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in pairs if name in FIELDS}


def run(folder: Path, engine: str, settings: dict[str, object]) -> tuple[Peaks, float]:
    """Run the federation; return the peaks and the seconds. Raises RuntimeError if it fails."""
    peaks, began = Peaks(), time.monotonic()
    environment = os.environ | {"THISTLEDOWN_CACHE": str(folder / "cache")}
    written = " ".join(f"{key}={_toml(value)}" for key, value in settings.items())
    command = [str(BIN / "thistledown"), "run", "--engine", engine, "-c", written]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as running,
    ):
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            peaks.look(parent, engine)
            time.sleep(EVERY)
    if running.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return peaks, time.monotonic() - began


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def measured(size: str, own: argparse.Namespace) -> tuple[int, Peaks, float]:
    """Write a base and run the federation on it; return the bytes of its weights, the peaks, and the seconds."""
    with tempfile.TemporaryDirectory(prefix="large-") as scratch:
        folder = Path(scratch)
        base = write_base(folder / "base", size, own.dtype)
        write_rows(folder / "rows.jsonl")
        print(f"a Llama with random weights, {base / 1e6:,.0f} MB in {own.dtype}", flush=True)
        settings = settings_of(folder, own.strategy, own.bits, own.dtype)
        settings |= {"data.max-length": own.tokens, "gradient-checkpointing": own.checkpointing}
        return base, *run(folder, own.engine, settings)


def largest(found: dict[int, dict[str, int]]) -> dict[str, int]:
    """Return the largest peak of all processes of a kind, by field."""
    return {name: max(peaks[name] for peaks in found.values()) for name in FIELDS}


def main() -> None:
    """Run the federation on a small base and on the large one; print how memory grows with the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="ray", choices=ENGINES, help="of `thistledown run`")
    parser.add_argument("--bits", default="none", choices=("none", "8bit", "4bit"), help="model.quantization")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the base")
    parser.add_argument("--checkpointing", action="store_true", help="gradient-checkpointing")
    parser.add_argument("--tokens", type=int, default=LENGTH, help="the most in a row")
    parser.add_argument(
        "--model", default=LARGE, choices=[size for size in SIZES if size != SMALL], help="its parameters"
    )
    parser.add_argument("--strategy", default="lora", choices=tuple(STRATEGIES), help="what nodes train and send")
    own = parser.parse_args()
    idle, before, _ = measured(SMALL, own)
    base, after, seconds = measured(own.model, own)
    found: dict[str, object] = {"base-bytes": base, "seconds": round(seconds, 1), **vars(own)}
    for kind in ("server", "worker"):
        most, least = largest(getattr(after, kind)), largest(getattr(before, kind))
        for name, peak in most.items():
            growth = (peak - least[name]) / (base - idle)
            print(f"{kind}: {name} {peak / 1e6:,.0f} MB, {growth:.2f} of the base more than with the small one")
            found[f"{kind}-{name.lower()}-bytes"], found[f"{kind}-{name.lower()}-of-base"] = peak, round(growth, 3)
    together = after.together / base
    print(f"all processes at one time: Pss {after.together / 1e6:,.0f} MB, {together:.1f} times the base")
    found["together-pss-bytes"], found["together-pss-of-base"] = after.together, round(together, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
