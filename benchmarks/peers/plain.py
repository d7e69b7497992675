"""A federation as a plain torch loop in forked processes: no exchange but what a sum needs.

    python -m benchmarks.peers.plain FOLDER [--processes 2]

Each process trains its share of the nodes one after another, from the weights of the round, and adds up what they
learned, weighted by rows; the processes' sums meet in shared memory. Each scores its share of the test rows.
"""

import argparse
from pathlib import Path

import torch
import torch.multiprocessing as processes

from benchmarks.peers.case import Case, Rows

EVALUATED = 32  # rows at a time


def local(model: torch.nn.Module, case: Case, rows: Rows) -> None:
    """Train in place on one node's rows."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case.rate, weight_decay=0.0, fused=True)
    count, left = len(rows["labels"]), case.steps_of(len(rows["labels"]))
    while left:
        for positions in torch.randperm(count).split(case.batch)[:left]:
            optimizer.zero_grad(set_to_none=True)
            model(**{name: tensor[positions] for name, tensor in rows.items()}).loss.backward()
            optimizer.step()
            left -= 1


@torch.no_grad()
def right(model: torch.nn.Module, rows: Rows, share: slice) -> int:
    """Return how many of a share of the rows get their label."""
    model.eval()
    positions = torch.arange(len(rows["labels"]))[share].split(EVALUATED)
    return sum(
        int(
            (
                model(**{name: tensor[own] for name, tensor in rows.items()}).logits.argmax(-1) == rows["labels"][own]
            ).sum()
        )
        for own in positions
    )


def work(rank: int, count: int, case: Case, folder: Path, model: torch.nn.Module, shared: list[torch.Tensor],
         sums: list[torch.Tensor], scores: torch.Tensor, barrier: object) -> None:  # fmt: skip
    """Run all rounds in one of the processes. `shared` are the weights of the round, and `sums` what was learned."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    nodes = {node: case.rows_of(folder, node) for node in range(rank, case.nodes, count)}
    total = sum(len(case.rows_of(folder, node)["labels"]) for node in range(case.nodes))
    test = case.test(folder)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for number in range(case.rounds + 1):
        for mine, theirs in zip(own, shared, strict=True):
            mine.data.copy_(theirs)
        scores[rank] = right(model, test, slice(rank, None, count))
        barrier.wait()  # type: ignore[attr-defined]
        if rank == 0:
            print(f"round {number}: accuracy {int(scores.sum()) / len(test['labels']):.3f}", flush=True)
        if number == case.rounds:
            return
        for rows in nodes.values():
            for mine, theirs in zip(own, shared, strict=True):
                mine.data.copy_(theirs)
            local(model, case, rows)
            for mine, theirs, learned in zip(own, shared, sums[rank * len(own) :], strict=False):
                learned.add_(mine.data - theirs, alpha=len(rows["labels"]) / total)
        barrier.wait()  # type: ignore[attr-defined]
        if rank == 0:
            for place, theirs in enumerate(shared):
                for process in range(count):
                    theirs.add_(sums[process * len(own) + place])
                    sums[process * len(own) + place].zero_()
        barrier.wait()  # type: ignore[attr-defined]


def main() -> None:
    """Run the federation in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    own = parser.parse_args()
    torch.set_num_threads(1)
    case = Case.read(own.folder)
    model = case.model()
    shared = [parameter.detach().clone().share_memory_() for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(tensor).share_memory_() for _ in range(own.processes) for tensor in shared]
    forked = processes.get_context("fork")
    scores, barrier = torch.zeros(own.processes).share_memory_(), forked.Barrier(own.processes)
    given = (own.processes, case, own.folder, model, shared, sums, scores, barrier)
    workers = [forked.Process(target=work, args=(rank, *given)) for rank in range(own.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    raise SystemExit(any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    main()
