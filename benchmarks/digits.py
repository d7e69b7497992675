"""Every strategy for adapters on the embedded digits, on skewed rows and with mixed ranks: `make results-digits`.

.venv/bin/python -m benchmarks.digits [--jobs 2] [--only skewed,fedsvd] [--outputs DIR]
"""

import sys
from typing import Any

from benchmarks import command
from benchmarks.study import Method, Setting, Study

RATES = (0.003, 0.01, 0.03)
SGD = (0.03, 0.1, 0.3)
LORA: dict[str, Any] = {"tuning": "lora"}
EQUAL = (
    Method("fedavg", {"strategy": "fedavg", **LORA}),
    Method("full", {"strategy": "fedavg", "tuning": "full"}, rates=(0.001, 0.003, 0.01)),
    Method("fedprox", {"strategy": "fedprox", **LORA}),
    Method("fedavg-sgd", {"strategy": "fedavg", **LORA, "optimizer": "sgd"}, rates=SGD),
    Method("scaffold", {"strategy": "scaffold", **LORA, "optimizer": "sgd", "max-grad-norm": 0.0}, rates=SGD),
    Method("ffa-lora", {"strategy": "ffa-lora", **LORA}),
    Method("rolora", {"strategy": "rolora", **LORA}),
    Method("fedex-lora", {"strategy": "fedex-lora", **LORA}),
    Method("fedsvd", {"strategy": "fedsvd", **LORA}),
    Method("fedrot-lora", {"strategy": "fedrot-lora", **LORA}),
    Method("lora-fair", {"strategy": "lora-fair", **LORA}),
    Method("lora-a2", {"strategy": "lora-a2", **LORA}),
    Method("pissa", {"strategy": "fedavg", **LORA, "lora.init": "pissa"}),
    Method("lora-sb", {"strategy": "fedavg", "tuning": "lora-sb"}),
    Method("slora", {"strategy": "slora", **LORA, "slora.density": 0.1}),
)
MIXED = tuple(
    Method(rule, {"strategy": rule, **LORA})
    for rule in ("rbla", "zero-pad", "hetlora", "flex-lora", "raflora", "flora", "fedavg")
)
ABOUT = (
    "The embedded vision transformer (0.1 million parameters, trained on upright digits) learns 750 digits that lie on "
    "their side, on ten nodes that all take part in {rounds} rounds of one local epoch. 297 test rows: the standard "
    "error of one accuracy near .8 is over two points. {said}"
)


def _setting(name: str, said: str, methods: tuple[Method, ...], ranks: str, alpha: float) -> Setting:
    options = {"lora.ranks": ranks, "data.alpha": alpha, "num-server-rounds": 15, "local-epochs": 1, "threads": 1}
    rates = {"lora": RATES, "lora-sb": RATES, "full": RATES}
    return Setting(name, ABOUT.format(rounds=15, said=said), options, methods, rates, target=0.6)


STUDY = Study(
    "digits",
    "The embedded digits: every strategy for adapters",
    (
        "A table for a first look: all rules on one small task, each at its own learning rate. What is small here need "
        "not be small on a large model.",
    ),
    ("None: nobody else has this task.",),
    (
        _setting("skewed", "Dirichlet 0.1; LoRA of rank 8 on all linear layers.", EQUAL, "8", 0.1),
        _setting("mixed", "Dirichlet 0.5; ranks 2, 4 and 8 in turn, and 2 for fedavg.", MIXED, "2,4,8", 0.5),
    ),
    reference="fedavg",
)


if __name__ == "__main__":
    sys.exit(command.main(STUDY))
