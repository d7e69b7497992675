"""A deployed node, asked by a message: what it answers, and what it tells of an error."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client_app
from client_app.public_errors import NodeFailed
from thistledown.simulation.grid import through_wire

SECRET = "Ada-Lovelace-1815"  # stands in rows that must not be told


def context(**node: Any) -> Context:
    own = {name.replace("_", "-"): value for name, value in node.items()}
    return Context(run_id=7, node_id=3, node_config=own, state=RecordDict(), run_config={})


def asked(kind: str, content: dict[str, Any], node: Context) -> Message:
    """What a deployed node answers. Raises what it would tell."""
    message = Message(RecordDict(content), dst_node_id=3, message_type=kind)
    message.metadata.__dict__["_message_id"] = "question"
    return client_app.app(through_wire(message), node)


def refusal(kind: str, content: dict[str, Any], node: Context) -> str:
    with pytest.raises(NodeFailed) as failed:
        asked(kind, content, node)
    return str(failed.value)


def settings(**options: object) -> ConfigRecord:
    """An order, of a classifier with labels unless they are given."""
    options = {"data__labels": "x|y", **options}
    return ConfigRecord({name.replace("__", ".").replace("_", "-"): value for name, value in options.items()})  # type: ignore[misc]
