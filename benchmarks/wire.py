"""What it costs to bring 90 MB of floats from torch onto the wire and back, in copies of the same bytes.

Sides are taken in turn in one process, without a network: `pack` and `unpack` are ours, `size` is what the report of a
round asks for, `flower_send` is what Flower's grid does with a message before it is sent (hash every object, encode
it), `flower_receive` what it does with the encoded objects. Prints one JSON line: the fastest of a few, each divided by
the time that a copy of the bytes takes.

    .venv/bin/python -m benchmarks.wire [--megabytes 90]
"""

import argparse
import hashlib
import json

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from benchmarks.fastest import fastest
from strategies.exchange.types import State
from strategies.protocol import wire
from thistledown.simulation.grid import identity

LAYERS = 20


def encoded(message: Message) -> dict[str, bytes]:
    """Return the objects of a message as Flower's grid sends them."""
    with no_object_id_recompute():
        return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def unnamed(records: RecordDict) -> RecordDict:
    """Return the same records without the names of objects that Flower keeps."""
    for array in records.array_records["arrays"].values():
        array.data = array.data
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=90)
    numbers = parser.parse_args().megabytes * 10**6 // 4 // LAYERS
    torch.set_num_threads(1)
    state = State({f"layer{n}.weight": torch.randn(numbers) for n in range(LAYERS)})
    with identity():
        records = wire.pack(state)
        message = Message(records, dst_node_id=1, message_type="train")
        contents, data = encoded(message), records.array_records["arrays"]["flat"].data
        name = message.object_id
        tasks = {
            "copy": lambda: bytearray(data),
            "pack": lambda: wire.pack(state),
            "unpack": lambda: wire.unpack(records),
            "size": lambda: wire.size(unnamed(records)),
            "sha256": lambda: hashlib.sha256(data),
            "flower_send": lambda: encoded(Message(unnamed(records), dst_node_id=1, message_type="train")),
            "flower_receive": lambda: inflate_object_from_contents(name, dict(contents)),
        }
        assert isinstance(records["arrays"], ArrayRecord)
        seconds = dict(zip(tasks, fastest(*tasks.values()), strict=True))
    copies = {side: round(seconds[side] / seconds["copy"], 2) for side in tasks if side != "copy"}
    found = {"megabytes": len(data) / 1e6, "copy_ms": round(1e3 * seconds["copy"], 1), **copies}
    print(json.dumps({**found, "pack_and_unpack": round(copies["pack"] + copies["unpack"], 2)}))


if __name__ == "__main__":
    main()
