"""A small language model on three sets of instructions, with what it writes before and after: `make results-language`.

.venv/bin/python -m benchmarks.language [--jobs 2] [--engine local] [--only alpaca] [--outputs DIR]
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from benchmarks import command
from benchmarks.federation import ROOT
from benchmarks.settings import ASSETS
from benchmarks.study import LOSS, Method, Options, Setting, Study

STORIES = f"{ASSETS}/stories260k-llama"
ALPACA, DOLLY, TASKS = (f"{ASSETS}/{name}/train.parquet" for name in ("alpaca", "dolly_3k", "natural_instructions"))
SAMPLE, SOME_TASKS = "outputs/alpaca-random-9k.parquet", "outputs/natural-instructions-36.parquet"
NODES = 36  # tasks, one a node

LORA = Method("lora", {"strategy": "fedavg", "tuning": "lora"})
RATES = {"lora": (0.01,)}
SAID = (
    "LoRA of rank 8 on all linear layers; rows of 128 tokens at most, {completion} of them of the completion. Loss in "
    "nats per completion token, end token included, on {rows} test rows, 64 of which are answered greedily."
)


def options(data: str, completion: int, rows: int, own: Options) -> Options:
    """Return the options of a setting."""
    common: Mapping[str, str | int | float | bool] = {
        "task.kind": "causal-lm",
        "model.name": STORIES,
        "data.name": data,
        "data.test-split": "",
        "data.max-length": 128,
        "data.max-completion-length": completion,
        "data.validation-rows": 64,
        "data.test-rows": rows,
        "lora.targets": "all-linear",
        "lora.ranks": "8",
        "max-grad-norm": 1.0,
        "learning-rate-min": 0.001,
        "batch-size": 16,
        "examine-rows": 0,
        "evaluate-every": 4,
        "evaluate-generations": 64,
    }
    return {**common, **own}


def write_rows() -> None:
    """Write the unbiased sample of Alpaca, and the tasks that are nodes."""
    (ROOT / SAMPLE).parent.mkdir(exist_ok=True)
    alpaca = parquet.read_table(ROOT / ALPACA)
    _write(alpaca.filter(compute.equal(alpaca["subset"].cast("string"), "random_9k")), ROOT / SAMPLE)
    tasks = parquet.read_table(ROOT / TASKS)
    names = np.random.default_rng(0).permutation(sorted(set(tasks["task"].to_pylist())))[:NODES]
    chosen = compute.is_in(tasks["task"].cast("string"), value_set=pyarrow.array(names.tolist()))
    _write(tasks.filter(chosen), ROOT / SOME_TASKS)


def _write(table: pyarrow.Table, path: Path) -> None:
    """Write a table, unless it is there: a run in progress may read it."""
    if not path.exists():
        draft = path.with_suffix(".draft")
        parquet.write_table(table, draft)
        draft.replace(path)


SETTINGS = (
    Setting(
        "alpaca",
        "A random sample of Alpaca, iid on four nodes, 6 local steps of 16 rows. "
        f"{SAID.format(completion=64, rows=256)}",
        options(
            SAMPLE,
            64,
            256,
            {"data.partitioner": "iid", "simulation.num-supernodes": 4, "local-steps": 6, "num-server-rounds": 24},
        ),
        (LORA,),
        RATES,
        target=2.5,
        metric=LOSS,
        assets=(STORIES, ALPACA),
    ),
    Setting(
        "dolly",
        f"The eight categories of Dolly as nodes, 4 local steps of 16 rows. {SAID.format(completion=64, rows=256)}",
        options(
            DOLLY,
            64,
            256,
            {
                "data.partitioner": "natural",
                "data.id-column": "category",
                "data.input-column": "input",
                "simulation.num-supernodes": 8,
                "local-steps": 4,
                "num-server-rounds": 20,
            },
        ),
        (LORA,),
        RATES,
        target=2.5,
        metric=LOSS,
        assets=(STORIES, DOLLY),
    ),
    Setting(
        "tasks",
        "36 tasks of Natural Instructions as nodes, 100 rows each, nine a round, 4 local steps of 16 rows. Test rows "
        f"are other rows of the same tasks. {SAID.format(completion=32, rows=256)}",
        options(
            SOME_TASKS,
            32,
            256,
            {
                "data.partitioner": "natural",
                "data.id-column": "task",
                "data.instruction-column": "definition",
                "simulation.num-supernodes": NODES,
                "fraction-train": 0.25,
                "local-steps": 4,
                "num-server-rounds": 20,
            },
        ),
        (LORA,),
        RATES,
        target=2.5,
        metric=LOSS,
        assets=(STORIES, TASKS),
    ),
)
STUDY = Study(
    "language",
    "A small language model on instructions: loss, and what it writes",
    (
        "A Llama of 260,032 parameters that was trained on short stories (stories260k, a vocabulary of 512) learns "
        "instructions in three federations. Held-out loss says how well it predicts the answers that are there; "
        "Rouge-L, exact match and word F1 say how much of them is in what it writes greedily, before and after.",
        "What it writes is a floor, and says that the measurement works, not that the model is of use. A model of this "
        "size has no knowledge to answer with: it learns the form of answers, and repeats itself. One learning rate is "
        "used for all: .01 in the first round, falling to .001 in the last by a cosine.",
    ),
    (
        "Rouge-L on Natural Instructions, models of 1.3 and 3 billion parameters after federated tuning: 22 to 32 "
        "(Shu et al., arXiv 2409.06277, Table 2), in units of 0.01.",
    ),
    SETTINGS,
    reference="lora",
)

if __name__ == "__main__":
    sys.exit(command.main(STUDY, prepare=write_rows))
