"""Aggregating many adapter updates: our rules, checks included, against Flower's own sum of the same numbers.

Rank-8 adapters on query and value of a 22.7 M-parameter encoder (12 layers of 384 x 384, and a head). Both sides start
from encoded replies, which are made one at a time, so what grows with their number is the rule's own memory.
Prints one JSON line: the time of every rule over Flower's, in turn in one process, and by how many MB peak memory grows
from 100 updates to all of them. `aggregation_error` is what measuring it adds to fedavg's checks and sum.

    .venv/bin/python benchmarks/aggregation.py [--updates 1000] [--rules fedavg,rbla,...]
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.task_identity import TaskIdentity

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, State, Update
from strategies.protocol import wire
from strategies.rounds.aggregation_error import ErrorMeasurement
from strategies.rounds.validation import validate_update

LAYERS, WIDTH, RANK, LABELS = 12, 384, 8, 4
DISTINCT = 16  # updates that differ; more would measure the random generator
FEW = 100
ASSIGNMENT = Assignment(1, 1, 0, RANK)


def adapter(seed: int) -> Tensors:
    """Return factors of all layers, and a head."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (LABELS, WIDTH), "classifier.bias": (LABELS,)}
    for layer in range(LAYERS):
        shapes |= {f"m{layer}.lora_A.weight": (RANK, WIDTH), f"m{layer}.lora_B.weight": (WIDTH, RANK)}
    return {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}


def ours(name: str, messages: Iterator[Message], measured: bool = False) -> None:
    """Check and combine as the round loop does, on request with the aggregation error."""
    strategy = strategies.load(name)
    state, error = State(adapter(0)), ErrorMeasurement()

    def admitted() -> Iterator[Update]:
        for message in messages:
            update = validate_update(strategy, message, "0", ASSIGNMENT, state)
            if measured:
                error.see(strategy.trained(state, update), update.weight)
            yield update

    new = strategy.apply(state, strategy.combine(state, admitted()), 1)
    error.read(new.tensors)


def replies(count: int) -> Iterator[Message]:
    """Yield replies to our round loop."""
    contents = [wire.pack(State(adapter(seed))) for seed in range(DISTINCT)]
    instruction = Message(RecordDict(), dst_node_id=1, message_type="train")
    for number in range(count):
        content = RecordDict(dict(contents[number % DISTINCT]))
        content["metrics"] = MetricRecord({"num-examples": 10 + number % 7, "server-round": 1})
        yield Message(content, reply_to=instruction)


def flowers(count: int) -> list[RecordDict]:
    """Return the same numbers as Flower's strategies get them: all replies at once."""
    arrays = [ArrayRecord(adapter(seed)) for seed in range(DISTINCT)]
    return [
        RecordDict({"arrays": arrays[n % DISTINCT], "metrics": MetricRecord({"num-examples": 10 + n % 7})})
        for n in range(count)
    ]


def paired(work: Callable[[], object], reference: Callable[[], object]) -> float:
    """Return the time of `work` divided by the time of `reference`: the best of five each, taken in turn."""
    best = {work: float("inf"), reference: float("inf")}
    for _ in range(5):
        for task in best:
            began = time.perf_counter()
            task()
            best[task] = min(best[task], time.perf_counter() - began)
    return best[work] / best[reference]


def peak() -> float:
    """Return the peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rules", default="fedavg,rbla,zero-pad,hetlora,flex-lora,flora,fedex-lora")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    line: dict[str, object] = {
        "updates": arguments.updates,
        "kB_an_update": round(sum(tensor.numel() for tensor in adapter(0).values()) * 4 / 1e3, 1),
    }
    records = flowers(arguments.updates)
    for name in arguments.rules.split(","):
        ours(name, replies(FEW))
        few = peak()
        ours(name, replies(arguments.updates))
        growth = peak() - few

        def mine(name: str = name) -> None:
            ours(name, replies(arguments.updates))

        ratio = paired(mine, lambda: aggregate_arrayrecords(records, "num-examples"))
        line[name] = {"time_over_flower": round(ratio, 2), "peak_growth_MB": round(growth, 1)}
    few = peak()
    line["aggregation_error"] = {
        "time_over_fedavg": round(
            paired(
                lambda: ours("fedavg", replies(arguments.updates), measured=True),
                lambda: ours("fedavg", replies(arguments.updates)),
            )
            - 1,
            2,
        ),
        "peak_growth_MB": round(peak() - few, 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
