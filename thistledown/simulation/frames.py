"""Messages over a connection between two processes of one program: Flower's own encoding, with the bytes of arrays as
they are.

Flower's encoding of whole messages copies and hashes every array several times, for storage on a SuperLink. Nothing
here unpickles.
"""

import json
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto

from strategies.protocol.wire import joined

PIECE = 2**24  # bytes of an array that are sent at once
Record = tuple[int, str, str]  # level, text and traceback of a log record


def send(connection: Connection, message: Message, context: Context, log: Sequence[Record] = ()) -> None:
    """Send a message or a reply, the node's context, and what was logged. Raises OSError if the other side is gone."""
    content = message.content if message.has_content() else RecordDict()
    arrays = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    others = RecordDict({name: record for name, record in content.items() if name not in arrays})
    error = message.error if message.has_error() else None
    light = make_message(message.metadata, None if error else others, error)
    head: dict[str, Any] = {
        "names": list(content),
        "arrays": {
            name: [[own, array.dtype, array.shape, array.stype, len(array.data)] for own, array in record.items()]
            for name, record in arrays.items()
        },
        "log": list(log),
    }
    connection.send_bytes(json.dumps(head).encode())
    connection.send_bytes(message_to_proto(light).SerializeToString())
    connection.send_bytes(context_to_proto(context).SerializeToString())
    for record in arrays.values():
        for array in record.values():
            view = memoryview(array.data)
            for start in range(0, len(view), PIECE):
                connection.send_bytes(view[start : start + PIECE])


def receive(connection: Connection) -> tuple[Message, Context, list[Record]]:
    """Return what `send` has sent. Raises EOFError or OSError if the other side is gone."""
    head = json.loads(connection.recv_bytes())
    message = message_from_proto(MessageProto.FromString(connection.recv_bytes()))
    context = context_from_proto(ContextProto.FromString(connection.recv_bytes()))
    if message.has_content():
        records: dict[str, Any] = dict(message.content)
        for name, lines in head["arrays"].items():
            records[name] = ArrayRecord({own: _array(connection, *about) for own, *about in lines})
        message.content = RecordDict({name: records[name] for name in head["names"]})
    return message, context, [(level, text, traceback) for level, text, traceback in head["log"]]


def _array(connection: Connection, dtype: str, shape: list[int], stype: str, size: int) -> Array:
    pieces = (connection.recv_bytes() for _ in range(0, size, PIECE))
    return Array(dtype, tuple(shape), stype, joined(pieces, size))
