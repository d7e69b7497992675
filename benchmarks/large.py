"""Memory of a federation on a model that is large: of the server, and of every worker.

A Llama of about half a billion parameters, written here with random weights: memory and time do not depend on what a
model has learned. Two simulated nodes train LoRA of rank 8 in a run of one round, in the real processes:
server, and one worker a node. Every process is watched by /proc. The same run on a model of 24 million parameters shows
what libraries take; what a process has beyond that is given as a share of the base's bytes. `Rss` has every page of a
process once, `Pss` a shared page in parts, `Private` none. `--bits 4bit` quantises; `--dtype
bfloat16` halves the base, and takes an hour on a processor without instructions for it. The last line is JSON.
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

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EVERY = 0.2  # seconds between looks
SIZES = {False: (1024, 4096, 26, 32_000), True: (256, 1024, 8, 32_000)}  # width, width inside, layers, vocabulary
ROWS, WORDS = 48, 20
FIELDS = ("Rss", "Pss", "Private_Clean", "Private_Dirty")


def write_base(folder: Path, small: bool, dtype: str) -> int:
    """Write a Llama with random weights and a tokenizer of whole words; return how many bytes its weights have."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    width, inside, layers, words = SIZES[small]
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


def settings_of(folder: Path, bits: str, dtype: str) -> str:
    """Return the settings of the run, as `thistledown run -c` takes them."""
    values = {
        "task.kind": "causal-lm", "model.name": str(folder / "base"), "model.dtype": dtype,
        "model.quantization": bits, "data.name": str(folder / "rows.jsonl"),
        "data.max-length": 32, "data.test-split": "", "data.validation-fraction": 0.0, "data.test-fraction": 0.0,
        "data.partitioner": "iid", "tuning": "lora", "lora.ranks": "8", "evaluate": "nodes", "num-server-rounds": 1,
        "local-steps": 2, "batch-size": 2, "threads": 1, "simulation.num-supernodes": 2,
        "output-dir": str(folder / "outputs"),
    }  # fmt: skip
    return " ".join(f"{key}={value!r}" for key, value in values.items())


@dataclass
class Peaks:
    """The most that every process of a kind has had, in bytes, by field of /proc."""

    server: dict[int, dict[str, int]] = field(default_factory=dict)
    worker: dict[int, dict[str, int]] = field(default_factory=dict)

    def look(self, parent: psutil.Process) -> None:
        """Look at all processes below `parent` once."""
        for process in parent.children(recursive=True):
            with suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                kind = self.worker if "ClientAppActor" in line else None
                kind = self.server if "programs.py simulation" in line else kind
                if kind is not None:
                    peaks = kind.setdefault(process.pid, {})
                    for name, now in memory(process.pid).items():
                        peaks[name] = max(now, peaks.get(name, 0))


def memory(pid: int) -> dict[str, int]:
    """Return a process's memory in bytes: `Rss`, `Pss`, and `Private`, which no other process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if name in FIELDS
    }
    return {"Rss": found["Rss"], "Pss": found["Pss"], "Private": found["Private_Clean"] + found["Private_Dirty"]}


def run(folder: Path, bits: str, dtype: str) -> tuple[Peaks, float]:
    """Run the federation; return the peaks and the seconds. Raises RuntimeError if it fails."""
    peaks, began = Peaks(), time.monotonic()
    environment = os.environ | {"THISTLEDOWN_CACHE": str(folder / "cache")}
    command = [str(BIN / "thistledown"), "run", "-c", settings_of(folder, bits, dtype)]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as running,
    ):
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            peaks.look(parent)
            time.sleep(EVERY)
    if running.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return peaks, time.monotonic() - began


def measured(small: bool, bits: str, dtype: str) -> tuple[int, Peaks, float]:
    """Write a base and run the federation on it; return the bytes of its weights, the peaks, and the seconds."""
    with tempfile.TemporaryDirectory(prefix="large-") as scratch:
        folder = Path(scratch)
        base = write_base(folder / "base", small, dtype)
        write_rows(folder / "rows.jsonl")
        print(f"a Llama with random weights, {base / 1e6:,.0f} MB in {dtype}", flush=True)
        return base, *run(folder, bits, dtype)


def largest(found: dict[int, dict[str, int]]) -> dict[str, int]:
    """Return the largest peak of all processes of a kind, by field."""
    return {name: max(peaks[name] for peaks in found.values()) for name in ("Rss", "Pss", "Private")}


def main() -> None:
    """Run the federation on a small base and on the large one; print how memory grows with the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", default="none", choices=("none", "8bit", "4bit"), help="model.quantization")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the base")
    own = parser.parse_args()
    bits, dtype = own.bits, own.dtype
    idle, before, _ = measured(True, bits, dtype)
    base, after, seconds = measured(False, bits, dtype)
    found: dict[str, object] = {"bits": bits, "dtype": dtype, "base-bytes": base, "seconds": round(seconds, 1)}
    for kind in ("server", "worker"):
        most, least = largest(getattr(after, kind)), largest(getattr(before, kind))
        for name, peak in most.items():
            growth = (peak - least[name]) / (base - idle)
            print(f"{kind}: {name} {peak / 1e6:,.0f} MB, {growth:.2f} of the base more than with the small one")
            found[f"{kind}-{name.lower()}-bytes"], found[f"{kind}-{name.lower()}-of-base"] = peak, round(growth, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
