"""Tunings on skewed rows, with a learning rate and a head rate searched for each: `make results-skew`.

.venv/bin/python -m benchmarks.skew [--jobs 2] [--engine local] [--only all,lora] [--outputs DIR]
"""

import sys
from dataclasses import replace

from benchmarks import command
from benchmarks.settings import minilm
from benchmarks.study import Method, Options, Setting, Study

TUNINGS = ("full", "lora", "dora", "ia3")
RATES = {
    "full": (0.00003, 0.0001, 0.0003),
    "lora": (0.0003, 0.001, 0.003),
    "dora": (0.0003, 0.001, 0.003),
    "ia3": (0.01, 0.03, 0.1),
}
HEAD_RATES = {
    "full": (100.0, 300.0, 1000.0),
    "lora": (10.0, 30.0, 100.0),
    "dora": (10.0, 30.0, 100.0),
    "ia3": (0.3, 1.0, 3.0),
}
SKEWED: Options = {
    "data.partitioner": "dirichlet",
    "data.alpha": 0.1,
    "data.min-partition-size": 1,  # no draw in ten leaves five articles or more to every one of sixteen nodes
    "simulation.num-supernodes": 16,
    "examine-rows": 0,
    "threads": 1,
}
SEARCH_ROUNDS = 6
ROWS: Options = {"data.validation-rows": 200, "data.test-rows": 100}
ALL = "16 nodes, Dirichlet 0.1 (the poorest have a single article), all of them"
TWO = "16 nodes, Dirichlet 0.1 (the poorest have a single article), two of them a round, measured every third"
SAID = "LoRA and DoRA have rank 8. 2,000 test rows: the standard error of one accuracy near .8 is one point."


def settings(name: str, split: str, rounds: int, own: Options) -> tuple[Setting, Setting, Setting]:
    """Return the search of learning rates, that of head rates, and the comparison."""
    times = 3 if own else 1
    methods = tuple(Method(tuning, {"strategy": "fedavg", "tuning": tuning}) for tuning in TUNINGS)
    measured = minilm(rounds * times, "8", SAID, methods, split=split, tokens=24)
    about = measured.about.replace(" 400 test rows: the standard error of one accuracy near .8 is two points.", "")
    common = {key: value for key, value in measured.options.items() if key != "head-rate"} | SKEWED | own
    shorter: Options = {**common, **ROWS, "num-server-rounds": SEARCH_ROUNDS * times}
    rates = replace(
        measured, name=f"{name}-rates", about=about, options=shorter, rates=RATES, search_only=True, target=0.75
    )
    heads = replace(rates, name=f"{name}-head-rates", rates=HEAD_RATES, holds=rates, searched="head-rate")
    common = {**common, "data.test-rows": 2000}
    return (
        rates,
        heads,
        replace(rates, name=name, options=common, rates_of=rates, holds=heads, search_only=False),
    )


STUDY = Study(
    "skew",
    "Skewed rows: what trains, each at its own rates",
    (
        "Does LoRA hold on skewed rows, and is IA3 ahead of full tuning there? A freshly drawn head wants a larger "
        "learning rate than what is pretrained, so both are searched for every tuning alike, one after the other: the "
        "learning rate at the tuning's usual `head-rate`, then `head-rate` at the learning rate that won, each on the "
        f"first seed in runs of {SEARCH_ROUNDS} rounds (three times as many with two nodes a round). A search whose "
        "best value is at an end of its grid goes on there. Nobody is hostile here, so updates are not examined "
        "(`examine-rows = 0`).",
    ),
    ("FedPETuning (Zhang et al., ACL Findings 2023): LoRA and BitFit hold at alpha 0.1 on GLUE with RoBERTa.",),
    (
        *settings("all", ALL, 10, {}),
        *settings("two", TWO, 10, {"fraction-train": 0.125, "evaluate-every": 3}),
    ),
    reference="full",
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    sys.exit(command.main(STUDY))
