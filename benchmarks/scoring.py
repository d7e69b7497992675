"""Time to score a state on the server: MiniLM and 1,000 articles, batch by batch and on all cores.

Real model, real articles, the code of the server, one process without Flower. Prints one JSON line: seconds of either
way, the fastest of a few in turn, and their ratio. The scores are the same to the bit, or it fails.

    .venv/bin/python -m benchmarks.scoring [--threads 1]
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.fastest import fastest
from task.data.prepared import prepare
from task.data.rows import Rows
from task.device import cores
from task.models.finding import server_base
from task.models.model import TunedModel, tuned_model
from task.storage.store import server_store
from task.training.parallel_evaluation import batches_at_once
from task.training.trainer import evaluate
from thistledown.settings import Settings

ROOT = Path(__file__).parent.parent
ASSETS = "../shared/assets"
OVERRIDES = f"model.name='{ASSETS}/minilm-l6-v2' data.name='{ASSETS}/ag_news' data.test-rows=1000"


def scene() -> tuple[TunedModel, Rows]:
    """Return the server's model and the test part."""
    config = Settings.read(ROOT, "ag-news", [OVERRIDES], ROOT).config.task
    base = server_base(config.model, server_store())
    parts = prepare(config, base.folder, server_store())
    return tuned_model(base, replace(config, data=replace(config.data, labels=parts.labels)), 8, "cpu"), parts.test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    model, rows = scene()
    ways, scores = (1, batches_at_once("cpu", threads)), []

    def score(way: int) -> None:
        scores.append(evaluate(model, rows, "cpu", way))

    times = fastest(*(partial(score, way) for way in ways), times=3)
    if any(score != scores[0] for score in scores):
        raise SystemExit(f"scores differ: {scores}")
    alone, together = (round(seconds, 2) for seconds in times)
    found = {
        "one_after_another_s": alone,
        "at_once": ways[1],
        "at_once_s": together,
        "ratio": round(together / alone, 2),
    }
    print(json.dumps({"cores": cores(), "threads": threads, **found}))


if __name__ == "__main__":
    main()
