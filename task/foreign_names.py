"""Names from other tools, and the names used here."""

import difflib
import re
from collections.abc import Sequence

# Keys of other tools, and the keys used here.
FOREIGN = {
    "fraction-fit": "fraction-train",
    "min-fit-clients": "min-train-nodes",
    "min-available-clients": "min-available-nodes",
    "num-rounds": "num-server-rounds",
    "rounds": "num-server-rounds",
    "num-clients": "simulation.num-supernodes",
    "clients": "simulation.num-supernodes",
    "num-supernodes": "simulation.num-supernodes",
    "lr": "learning-rate",
    "learning-rate-max": "learning-rate",
    "epochs": "local-epochs",
    "num-epochs": "local-epochs",
    "num-train-epochs": "local-epochs",
    "max-steps": "local-steps",
    "per-device-train-batch-size": "batch-size",
    "train-batch-size": "batch-size",
    "gradient-accumulation-steps": "micro-batch-size",
    "gradient-accumulation": "micro-batch-size",
    "accumulate-grad-batches": "micro-batch-size",
    "max-physical-batch-size": "micro-batch-size",
    "activation-checkpointing": "gradient-checkpointing",
    "use-gradient-checkpointing": "gradient-checkpointing",
    "gradient-checkpointing-enable": "gradient-checkpointing",
    "load-in-4bit": "model.quantization",
    "load-in-8bit": "model.quantization",
    "quantization": "model.quantization",
    "quantization-config": "model.quantization",
    "bnb-4bit-compute-dtype": "model.compute-dtype",
    "bnb-4bit-use-double-quant": "model.double-quantization",
    "auto-find-batch-size": "micro-batch-size",
    "optim": "optimizer",
    "gradient-clipping": "max-grad-norm",
    "gradient-clip-val": "max-grad-norm",
    "peft-method": "tuning",
    "method": "tuning",
    "algorithm": "strategy",
    "aggregation": "strategy",
    "random-seed": "seed",
    "gpu": "device",
    "use-gpu": "device",
    "use-cuda": "device",
    "no-cuda": "device",
    "accelerator": "device",
    "fp16": "model.dtype",
    "bf16": "precision",
    "mixed-precision": "precision",
    "torch-dtype": "model.dtype",
    "lora-alpha": "lora.alpha",
    "use-rslora": "lora.rslora",
    "lora.rank": "lora.ranks",
    "lora-rank": "lora.ranks",
    "lora.r": "lora.ranks",
    "lora-r": "lora.ranks",
    "rank": "lora.ranks",
    "ranks": "lora.ranks",
    "lora-dropout": "lora.dropout",
    "lora.target-modules": "lora.targets",
    "lora-target-modules": "lora.targets",
    "target-modules": "lora.targets",
    "num-virtual-tokens": "prompt.tokens",
    "model": "model.name",
    "model-name": "model.name",
    "model-name-or-path": "model.name",
    "model-id": "model.name",
    "base-model": "model.name",
    "dataset": "data.name",
    "dataset.name": "data.name",
    "dataset-name": "data.name",
    "dataset-path": "data.name",
    "max-seq-length": "data.max-length",
    "max-seq-len": "data.max-length",
    "model-max-length": "data.max-length",
    "seq-length": "data.max-length",
    "seq-len": "data.max-length",
    "sequence-length": "data.max-length",
    "context-length": "data.max-length",
    "cutoff-len": "data.max-length",
    "messages": "data.messages-column",
    "padding-free": "packing",
    "sample-packing": "packing",
    "train-sampling-strategy": "group-by-length",
    "conversations": "data.messages-column",
    "conversations-column": "data.messages-column",
    "prompt": "data.prompt-column",
    "completion": "data.completion-column",
    "chosen": "data.chosen-column",
    "rejected": "data.rejected-column",
    "beta": "preference.beta",
    "dpo-beta": "preference.beta",
    "response": "data.output-column",
    "response-column": "data.output-column",
    "dataset-text-field": "data.output-column",
    "chat-template": "data.template",
    "chat-template-path": "data.template",
    "num-labels": "data.labels",
    "dirichlet-alpha": "data.alpha",
    "partition": "data.partitioner",
    "output": "output-dir",
    "results-dir": "output-dir",
    "resume-from-checkpoint": "resume",
    "mu": "fedprox.mu",
    "proximal-mu": "fedprox.mu",
}
# The same for values, and for names of strategies and wrappers.
VALUES = {
    "halve": "half",
    "quantise": "quantize",
    "quantization": "quantize",
    "nf4": "4bit",
    "int4": "4bit",
    "int8": "8bit",
    "topk": "top-k",
    "clip": "norm-bound",
    "dp": "central-privacy",
    "dp-sgd": "example-privacy",
    "fedit": "fedavg",
    "gpu": "cuda",
    "nvidia": "cuda",
    "rocm": "cuda",
    "metal": "mps",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "adam": "adamw",
    "adamw-bnb-8bit": "adamw-8bit",
    "paged-adamw": "paged-adamw-8bit",
    "clm": "causal-lm",
    "text-generation": "causal-lm",
    "text2text-generation": "seq2seq-lm",
    "summarization": "seq2seq-lm",
    "translation": "seq2seq-lm",
    "dpo": "preference",
    "ner": "token-classification",
    "sequence-classification": "text-classification",
    "seq-cls": "text-classification",
    "sft": "full",
    "bitfit": "bias",
    "linear-probe": "head",
    "linear-probing": "head",
    "prompt-tuning": "prompt",
    "prefix-tuning": "prefix",
    "vpt": "prompt",
    "(ia)3": "ia3",
    "adapters": "adapter",
    "non-iid": "dirichlet",
    "llama3": "llama-3",
    "llama-3.1": "llama-3",
    "chat-ml": "chatml",
    "qwen": "chatml",
    "client": "nodes",
    "clients": "nodes",
}
ALIKE = 0.8  # similarity of two words, by letters, from which one counts as a typo of the other
NEARLY = 0.9  # the same for two whole names
WORD = re.compile(r"[.-]")


def meant(name: str, there: Sequence[str]) -> str:
    """Return the question after a name that does not exist: the existing name with the same meaning, or the one of
    which this is a typo. "" if there is neither: a name that only looks similar does not help."""
    plain = name.strip().lower().replace("_", "-")
    known = [other for other in (plain, FOREIGN.get(plain), VALUES.get(plain), _in_group(plain)) if other in there]
    slips = difflib.get_close_matches(plain, there, n=len(there) or 1, cutoff=0.6)
    near = known or _same_end(plain, there) or [other for other in slips if _is_slip(plain, other)]
    return f"; did you mean '{near[0]}'?" if near else ""


def _is_slip(name: str, other: str) -> bool:
    """Return whether a name differs from another only by typos in some words, or by a letter or two."""
    words, others = WORD.split(name), WORD.split(other)
    alike = [sorted(one) == sorted(two) or _ratio(one, two) >= ALIKE for one, two in zip(words, others)]
    return (len(words) == len(others) and all(alike)) or _ratio(name, other) >= NEARLY


def _ratio(one: str, two: str) -> float:
    return difflib.SequenceMatcher(None, one, two).ratio()


def _in_group(name: str) -> str:
    """Return the key for another tool's name in one of our groups, if it is of the same group; else ""."""
    group, _, end = name.partition(".")
    key = FOREIGN.get(end, "")
    return key if key.startswith(f"{group}.") else ""


def _same_end(name: str, there: Sequence[str]) -> list[str]:
    """Return the key of this name in another group, if there is exactly one."""
    ends = [other for other in there if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return ends if len(ends) == 1 else []
