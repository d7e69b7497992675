"""Seeded projection: time against the paper's way and against a copy of the vector, and memory beside the vectors.

The paper's way (Shu et al., arXiv 2409.06277, Eqs. 6 and 7, one block) is written out below: one seed after the other,
a vector of truncated normal numbers is drawn, multiplied with the update, and drawn once more to rebuild it. It is
timed on a few of its seeds and scaled up to all of them. Ours is `hadamard`, in blocks of 65,536, integers included.
Prints one JSON line:

    speedup_vs_reference     d = 1,000,000, K = 4,096: project and rebuild, their seconds over ours
    project_vs_copy          seconds over those of torch.clone of the same float32 vector, 16.8 M numbers and 100 M
    reconstruct_vs_copy      likewise, adding the rebuilt vector included
    peak_extra_MB            100 M numbers: how far peak memory rises above the two vectors

    .venv/bin/python -m benchmarks.projection [--threads 1] [--seeds 32]
"""

import argparse
import json
import resource

import torch

from benchmarks.fastest import fastest
from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import Coordinates, Projection
from strategies.algebra.truncated_normal import variance

BLOCK, TOTAL = 65536, 4096
SMALL, MIDDLE, LARGE = 1_000_000, 1 << 24, 100_000_000
SEEDS = Seeds(7, 8)
CPU = torch.device("cpu")


def drawn(seed: int, length: int) -> torch.Tensor:
    """v_k: N(0, 1) truncated to [-1 / sqrt(d), 1 / sqrt(d)]."""
    edge = length**-0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.trunc_normal_(torch.empty(length), a=-edge, b=edge, generator=generator)


def papers_way(update: torch.Tensor, seeds: int) -> torch.Tensor:
    """gamma_k = v_k . update / (rho K), then sum_k gamma_k v_k, over the first so many of K seeds."""
    scale = 1 / (variance(len(update)) * TOTAL)
    coordinates = [float(drawn(seed, len(update)) @ update) * scale for seed in range(seeds)]
    rebuilt = torch.zeros_like(update)
    for seed, coordinate in enumerate(coordinates):
        rebuilt.add_(drawn(seed, len(update)), alpha=coordinate)
    return rebuilt


class Vectors:
    """A vector before and after training, and its projection."""

    def __init__(self, length: int) -> None:
        torch.manual_seed(SEEDS.own)
        self.before = {"w": torch.empty(length).normal_()}
        self.after = {"w": torch.empty(length).normal_(std=0.01).add_(self.before["w"])}
        self.projection = Projection(Layout.of(self.before, BLOCK), "hadamard", TOTAL)

    def project(self) -> Coordinates:
        return self.projection.project(self.after, self.before, SEEDS)

    def add(self, given: Coordinates) -> None:
        """Add the rebuilt vector to the weights, as a replay does."""
        layout = self.projection.layout
        for blocks in layout.groups():
            change = self.projection.rebuilt([given], [SEEDS], blocks, CPU)
            layout.write(self.before, blocks, layout.read(self.before, blocks) + change)


def against_copies(vectors: Vectors) -> dict[str, float]:
    """Return the times of projecting and rebuilding, divided by the time of a copy."""
    given = vectors.project()
    copy, project, add = fastest(vectors.before["w"].clone, vectors.project, lambda: vectors.add(given))
    return {"project_vs_copy": round(project / copy, 2), "reconstruct_vs_copy": round(add / copy, 2)}


def peak() -> float:
    """Return the peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=32, help="of 4,096, on which the paper's way is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = Vectors(SMALL)
    small.add(small.project())  # what is loaded and allocated once
    large = Vectors(LARGE)
    vectors_only = peak()
    large.add(large.project())
    extra = peak() - vectors_only
    update, given = small.after["w"] - small.before["w"], small.project()
    tasks = (lambda: papers_way(update, arguments.seeds), small.project, lambda: small.add(given))
    slow, project, add = fastest(*tasks, times=3)
    line = {
        "threads": arguments.threads,
        "speedup_vs_reference": round(slow * TOTAL / arguments.seeds / (project + add)),
        "reference_seeds_timed": arguments.seeds,
        **against_copies(Vectors(MIDDLE)),
        "100M": against_copies(large) | {"peak_extra_MB": round(extra, 1)},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
