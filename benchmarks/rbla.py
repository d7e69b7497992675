"""RBLA against the other rules for mixed ranks, and against full FedAvg: `make results-rbla`.

.venv/bin/python -m benchmarks.rbla [--jobs 2] [--only digits,rbla,zero-pad] [--outputs DIR]
"""

import sys

from benchmarks import command
from benchmarks.federation import ROOT
from benchmarks.settings import MNIST, fashion_vit, minilm
from benchmarks.study import Method, Setting, Study

PERCEPTRON = "outputs/perceptron-{seed}"
RULES = ("rbla", "zero-pad", "hetlora", "flex-lora", "flora", "ffa-lora")
METHODS = (
    *(Method(rule, {"strategy": rule, "tuning": "lora"}) for rule in RULES),
    Method("fedavg", {"strategy": "fedavg", "tuning": "full"}),
)

PAPER = Setting(
    "paper",
    "The setting of the authors' experiment, as far as their repository tells: MNIST on ten nodes in a staircase "
    "(node i holds the labels 0 to i), a perceptron 784-200-200-10 with fresh weights (another draw for every seed), "
    "adapters on all three layers of rank 16, 32, ..., 160, product not scaled, SGD with momentum 0.9 and weight decay "
    "1e-4, batch 64, one local epoch. Different here: the output layer gets the ranks of the others, where the authors "
    "cap it at 100. ffa-lora needs equal ranks, so everybody trains the smallest, 16; full FedAvg trains all weights. "
    'The base is written by `make results-rbla`, or by `.venv/bin/python -c "from pathlib import Path; from '
    "benchmarks.perceptron import write; write(Path('outputs/perceptron-0'), seed=0)\"`.",
    {
        "model.name": PERCEPTRON,
        "model.trust-remote-code": True,
        "data.name": MNIST,
        "data.validation-fraction": 0.033333,  # 2,000 of 60,000 rows
        "data.partitioner": "staircase",
        "lora.ranks": ",".join(str(16 * step) for step in range(1, 11)),
        "lora.scaling": 1.0,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight-decay": 1e-4,
        "batch-size": 64,
        "local-epochs": 1,
        "num-server-rounds": 10,
    },
    METHODS,
    {"lora": (0.01, 0.02, 0.05), "full": (0.01, 0.02, 0.05)},
    target=0.9,
    assets=(MNIST,),
)
DIGITS = Setting(
    "digits",
    "The embedded default with mixed ranks: a small vision transformer, trained on upright digits, learns 750 digits "
    "that lie on their side, on ten nodes, Dirichlet 0.5, three local epochs, 297 test rows. Ranks 2, 4 and 8 in turn.",
    {"lora.ranks": "2,4,8", "num-server-rounds": 15},
    METHODS,
    {"lora": (0.003, 0.005, 0.01), "full": (0.003, 0.005, 0.01)},
    target=0.75,
)
STUDY = Study(
    "rbla",
    "RBLA: averaging each slice of rank over the nodes that own it",
    (
        "Chen et al. (arXiv 2408.08699) average every slice of rank over the nodes that have it, instead of filling "
        "missing slices with zeros. That gives the slices of few nodes their full length, where zero-padding shrinks "
        "them. The claim that is tested: fewer rounds to a target accuracy than zero-padding.",
        "The column aggregation error shows what a rule pays: a slice that few nodes own acts at full length in "
        "everybody's "
        "product, so that product is off the mean of what the nodes learned. Where the owners of these slices have "
        "rows of most labels, as in the staircase, that is a gain; where rows are skewed over nodes whatever their "
        "ranks, the slices carry the labels of their few owners.",
    ),
    (
        "The paper's tables of rounds to target were not available to us, so there is nothing to compare to digit by "
        "digit. In logs that the first author published later, best test accuracies with convolutional networks go "
        "either way: RBLA .846 and zero-padding .857 on SVHN with VGG9; .335 and .481 on CINIC-10 with Dirichlet 0.1. "
        "With a perceptron on MNIST, Dirichlet 0.1: .648 and .569.",
    ),
    (
        PAPER,
        DIGITS,
        minilm(8, "2,4,8", "Ranks 2, 4 and 8 in turn.", METHODS),
        fashion_vit(12, "2,4,8", "Ranks 2, 4 and 8 in turn.", METHODS),
    ),
    reference="rbla",
)


def write_perceptrons() -> None:
    """The bases of the setting `paper`: an untrained perceptron for every seed."""
    from benchmarks.perceptron import write

    for seed in STUDY.seeds:
        write(ROOT / PERCEPTRON.format(seed=seed), seed)


if __name__ == "__main__":
    sys.exit(command.main(STUDY, prepare=write_perceptrons))
