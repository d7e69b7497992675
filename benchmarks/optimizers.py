"""What server optimizers make of skewed rows and half cohorts, on the embedded digits.

Ten nodes share 750 digits by Dirichlet 0.1; five of them train in a round, six local steps of AdamW on LoRA of rank 8,
for 10 rounds. Whole federations in one process (tests/in_process.py). The rate of each optimizer is chosen among three,
by the validation part of a seed of its own. Prints accuracies on the test part after half of the rounds and after all,
mean and standard deviation over seeds.

    .venv/bin/python -m benchmarks.optimizers [--optimizers sgd,adam] [--seeds 3] [--options "learning-rate=0.01"]
"""

import argparse
import logging
import statistics
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from in_process import federate

ROUNDS = 10
SEARCHED = 100  # the seed that rates are chosen on
OPTIONS: dict[str, Any] = {
    "num-server-rounds": ROUNDS,
    "simulation.num-supernodes": 10,
    "fraction-train": 0.5,
    "evaluate-every": ROUNDS // 2,
    "data.alpha": 0.1,
    "data.train-rows": 0,
    "data.validation-rows": 0,
    "data.test-rows": 0,
    "local-steps": 6,
    "batch-size": 16,
    "threads": 1,
}
RATES = {
    "sgd": (0.5, 1.0, 1.5),
    "momentum": (0.1, 0.3, 1.0),
    "adam": (0.003, 0.01, 0.03),
    "yogi": (0.003, 0.01, 0.03),
    "adagrad": (0.01, 0.03, 0.1),
}


def main() -> None:
    """Search, measure and print, one optimizer after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default=",".join(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", default="", help="run-config keys in TOML, for all runs")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options = OPTIONS | _flat(tomllib.loads(arguments.options))
    print("| `server-optimizer` | rate | round 5 | round 10, seed by seed | |\n|---|---|---|---|---|", flush=True)
    for name in arguments.optimizers.split(","):
        found = {rate: _curve(options, name, rate, SEARCHED, "server-validation-accuracy")[-1] for rate in RATES[name]}
        print("".join(f" [{name} {rate:g}: {value:.3f}]" for rate, value in found.items()), file=sys.stderr, flush=True)
        best = max(found, key=lambda rate: found[rate])
        for rate in (best, 1.0) if name == "sgd" and best != 1.0 else (best,):  # FedAvg itself, beside its best rate
            curves = [_curve(options, name, rate, seed, "accuracy") for seed in range(arguments.seeds)]
            half, last = [curve[-2] for curve in curves], [curve[-1] for curve in curves]
            said = " ".join(_short(value) for value in last)
            print(f"| `{name}` | {rate:g} | {_spread(half)} | {said} | {_spread(last)} |", flush=True)


def _curve(options: dict[str, Any], name: str, rate: float, seed: int, metric: str) -> list[float]:
    """A metric of a run, before training and whenever it was measured."""
    chosen = {"server-optimizer": name, f"server-{name}.learning-rate": rate, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        return [float(line[metric]) for line in federate(Path(folder), options | chosen).rounds if metric in line]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{_short(statistics.fmean(values))} ± {_short(deviation)}"


if __name__ == "__main__":
    main()
