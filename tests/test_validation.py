"""The door: a good reply comes in, a bad one is refused with a reason that names what is wrong."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from in_process import equal
from laws import SAID, Plan, scene, variants

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Entry, Refused, State, Update
from strategies.protocol import wire
from strategies.rounds import validation
from task.config import TaskConfig
from task.schema import ConfigError
from thistledown.simulation.grid import through_wire

A, B, HEAD = "m0.lora_A.weight", "m0.lora_B.weight", "classifier.weight"
STATE = State({A: torch.ones(3, 4), B: torch.ones(5, 3), HEAD: torch.ones(2, 5, dtype=torch.bfloat16)})
ASSIGNMENT = Assignment(round=2, rounds=3, seed=9, rank=2)
METRICS: dict[str, Any] = {"num-examples": 10, "server-round": 2, "train-loss": 0.5}


@pytest.fixture
def instruction() -> Message:
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    message.metadata.__dict__["_message_id"] = "question"
    return message


def delta(**changed: torch.Tensor | None) -> Tensors:
    """An update that fits, with some tensors changed, added or (None) left out."""
    fitting = {A: torch.full((2, 4), 0.5), B: torch.zeros(5, 2), HEAD: torch.ones(2, 5, dtype=torch.bfloat16)}
    return {name: tensor for name, tensor in (fitting | changed).items() if tensor is not None}


def reply(to: Message, tensors: Tensors, metrics: dict[str, Any] | None = METRICS, **state: Any) -> Message:
    records = wire.pack(State(tensors, **state))
    if metrics is not None:
        records["metrics"] = MetricRecord({name: value for name, value in metrics.items() if value is not None})
    return Message(records, reply_to=to)


def validate(message: Message | None, strategy: Any = None) -> Update:
    strategy = strategy or strategies.load("rbla")
    return validation.validate_update(strategy, message, "7", ASSIGNMENT, strategy.start_of(STATE, ASSIGNMENT))


def reason(message: Message | None, strategy: Any = None) -> str:
    with pytest.raises(Refused) as refused:
        validate(message, strategy)
    text = str(refused.value)
    assert len(text) < 1000
    assert text.isprintable(), "a node must not write control characters into the log"
    return text


# ---------------------------------------------------------------------- good replies


def test_a_good_reply_becomes_an_update(instruction):
    update = validate(through_wire(reply(instruction, delta())))
    assert (update.node, update.assignment, update.weight) == ("7", ASSIGNMENT, 10.0)
    assert isinstance(update.weight, float)
    assert dict(update.metrics) == {"num-examples": 10, "train-loss": 0.5}
    assert all(torch.equal(update.delta[name], tensor) for name, tensor in delta().items())


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_accepts_what_it_expects(instruction, name):
    for strategy in variants(name):
        drawn = scene(strategy, Plan((3, 2), (0, 1), (10, 10), 4))
        for sent in drawn.updates:
            answer = through_wire(reply(instruction, sent.delta, METRICS | SAID | {"server-round": 1}))
            update = validation.validate_update(strategy, answer, sent.node, sent.assignment, drawn.state)
            assert equal(update.delta, sent.delta)


def test_wrappers_are_undone_before_the_check(instruction):
    half = strategies.load_wrapper("half")
    strategy = strategies.load("rbla", wrappers=[half])
    update = validate(reply(instruction, half.encode(delta(), ASSIGNMENT, {})), strategy)
    assert {name: tensor.dtype for name, tensor in update.delta.items()} == {
        n: t.dtype for n, t in STATE.tensors.items()
    }


# ---------------------------------------------------------------------- bad replies


def test_no_reply():
    assert "no reply" in reason(None)


def test_error_reply(instruction):
    said = reason(Message(Error(code=2, reason="<class 'ValueError'>:<'no rows'>"), reply_to=instruction))
    assert "2" in said
    assert "no rows" in said


def test_error_reply_without_a_reason(instruction):
    assert "no reason" in reason(Message(Error(code=0), reply_to=instruction))


@pytest.mark.parametrize("rows", [None, 0, -3, 10.0, math.nan, math.inf, 10**13, 2**62])
def test_rows_that_cannot_be(instruction, rows):
    assert "num-examples" in reason(reply(instruction, delta(), METRICS | {"num-examples": rows}))


def test_true_is_no_number_of_rows(instruction):
    message = reply(instruction, delta())
    message.content["metrics"].__dict__["_data"]["num-examples"] = True  # Flower's own record would not take it
    assert "num-examples" in reason(message)


@pytest.mark.parametrize("round_", [1, 3, None])
def test_another_round(instruction, round_):
    assert "round" in reason(reply(instruction, delta(), METRICS | {"server-round": round_}))


def test_no_metrics(instruction):
    assert "no metrics" in reason(reply(instruction, delta(), None))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [0.5, 0.25], []])
def test_metrics_that_are_no_numbers(instruction, value):
    assert "train-loss" in reason(reply(instruction, delta(), METRICS | {"train-loss": value}))


def test_metrics_with_evil_names(instruction):
    assert "is nan" in reason(reply(instruction, delta(), METRICS | {"\x1b[2J" + "x" * 10_000: math.nan}))


def test_a_journal(instruction):
    assert "journal" in reason(reply(instruction, delta(), journal=(Entry(2, 1, {"k": torch.ones(2)}),)))
    assert "journal" in reason(reply(instruction, delta(), base_weights={"k": torch.ones(2)}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({A: None}, [A, "missing"]),
        ({A: None, B: None}, [A, B, "missing"]),
        ({"strange": torch.ones(1)}, ["strange", "not asked for"]),
        ({f"strange{i}": torch.ones(1) for i in range(9)}, ["strange0", "6 more"]),
        ({"\x1b[2J\n": torch.ones(1)}, ["not asked for"]),
        ({"x" * 10_000: torch.ones(1)}, ["not asked for"]),
        ({A: torch.ones(3, 4)}, [A, "shape", "(3, 4)", "(2, 4)"]),
        ({A: torch.ones(4, 2)}, [A, "shape"]),
        ({HEAD: torch.ones(10, dtype=torch.bfloat16)}, [HEAD, "shape"]),
        ({A: torch.ones(2, 4).double()}, [A, "dtype", "float64", "float32"]),
        ({A: torch.ones(2, 4).bfloat16()}, [A, "dtype"]),
        ({HEAD: torch.ones(2, 5)}, [HEAD, "dtype"]),
        ({A: torch.full((2, 4), math.nan)}, [A, "NaN"]),
        ({B: torch.full((5, 2), -math.inf)}, [B, "infinity"]),
        ({HEAD: torch.full((2, 5), math.nan, dtype=torch.bfloat16)}, [HEAD, "NaN"]),
    ],
)
def test_tensors_that_do_not_fit(instruction, changed, words):
    said = reason(reply(instruction, delta(**changed)))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.float16])
def test_nan_is_found_in_every_dtype(instruction, dtype):
    strategy, state = strategies.load("fedavg"), State({"w": torch.zeros(3).to(dtype)})
    bad = torch.tensor([0.0, math.nan, 1.0]).to(dtype)
    with pytest.raises(Refused, match="'w' holds NaN"):
        validation.validate_update(strategy, reply(instruction, {"w": bad}), "7", ASSIGNMENT, state)


def test_bytes_that_do_not_fit_the_index(instruction):
    message = reply(instruction, delta())
    flat = message.content.array_records["arrays"]["flat"]
    message.content["arrays"] = ArrayRecord({"flat": Array("uint8", (3,), flat.stype, flat.data[:3])})
    assert "bytes" in reason(message)


@pytest.mark.parametrize("gone", ["arrays", "index"])
def test_records_that_are_gone(instruction, gone):
    message = reply(instruction, delta())
    del message.content[gone]
    assert "unreadable" in reason(message)


def test_records_of_another_kind(instruction):
    message = reply(instruction, delta())
    message.content["index"] = ConfigRecord({"index": 3})
    assert "unreadable" in reason(message)


def test_a_float16_update_that_overflowed_is_refused(instruction):
    half = strategies.load_wrapper("half", dtype="float16")
    strategy = strategies.load("rbla", wrappers=[half])
    sent = half.encode(delta(**{A: torch.full((2, 4), 1e6)}), ASSIGNMENT, {})
    assert "infinity" in reason(reply(instruction, sent), strategy)


def test_metrics_alone_are_accepted(instruction):
    good = Message(RecordDict({"metrics": MetricRecord({"accuracy": 0.5})}), reply_to=instruction)
    assert validation.validate_metrics(good) == {"accuracy": 0.5}
    with pytest.raises(Refused, match="no metrics"):
        validation.validate_metrics(Message(RecordDict(), reply_to=instruction))


# ---------------------------------------------------------------------- reasons


def simulated(error: Exception) -> str:
    """The text of an error reply in a simulation: Ray's traceback of what Flower raised for `error`."""
    from flwr.clientapp.client_app import ClientAppException
    from ray.exceptions import RayTaskError

    cause = ClientAppException(str(error))
    trace = (
        f'ray::ClientAppActor.run() (pid=7)\n  File "client_app.py", line 9, in run\n{type(error).__name__}: {error}\n'
    )
    trace += (
        f'\nDuring handling of the above exception:\n\n  File "ray_actor.py", line 63, in run\n{type(cause)}: {cause}'
    )
    raised = RayTaskError("run", trace, cause).as_instanceof_cause()
    return f"{type(raised)}:<'{raised}'>"


def deployed(error: Exception) -> str:
    """The text of an error reply of a SuperNode."""
    return f"{type(error)}:<'{error}'>"


@pytest.mark.parametrize("form", [simulated, deployed])
def test_a_reason_is_the_sentence_that_was_raised(form):
    said = validation.plain_reason(form(ZeroDivisionError("client zero failed")))
    assert said.endswith("client zero failed")
    assert len(said) < len("ZeroDivisionError: client zero failed") + 3
    assert "class" not in said


@pytest.mark.parametrize("form", [simulated, deployed])
def test_a_reason_of_several_lines_keeps_what_matters(form):
    problems = replace(TaskConfig(), optimizer="adamw", momentum=0.9).problems()
    said = validation.plain_reason(form(ConfigError(problems)))
    assert "momentum is an option of optimizer = 'sgd'" in said


def test_a_quote_inside_a_reason_stays():
    assert validation.plain_reason("<class 'KeyError'>:<'there is no key 'lr''>").endswith("there is no key 'lr'")


@pytest.mark.parametrize("text", [None, "", "   ", "\n\n", "'>"])
def test_no_reason_is_said(text):
    assert validation.plain_reason(text) == "no reason given"


def test_a_reason_is_short():
    assert len(validation.plain_reason("<class 'ValueError'>:<'" + "x" * 100_000 + "'>")) <= 500
