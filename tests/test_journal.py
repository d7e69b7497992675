"""The journal: marks name places in it, and a model is brought to a place from wherever it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from entries import ADAPTED, TASK, Listening, entry, fresh_at, same, state_of, values
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import FACTORS, INPUTS, OUTPUTS, WEIGHT, toy_model
from random_states import states

import strategies
from strategies.algebra.tensors import raw, snapshot
from strategies.exchange.types import BASE_POSITION, Entry, Refused, State
from strategies.protocol import checkpoint, journal, wire
from strategies.protocol.journal import NOWHERE
from task.config import Model
from task.models.finding import server_base
from task.models.model import TunedModel, build, tuned_model
from task.models.saving import save
from task.storage.store import server_store

# ---------------------------------------------------------------------- marks


@given(states())
def test_positions_do_not_depend_on_the_order_of_names(state):
    turned = tuple(replace(e, tensors=dict(reversed(e.tensors.items()))) for e in state.journal)
    assert State({}, turned).positions == state.positions


@given(states())
def test_a_position_survives_wire_checkpoint_and_arrays(state):
    """Nodes and server must agree on it, whatever the tensors went through."""
    assert wire.unpack(wire.pack(state)).positions == state.positions
    journal = tuple(e for e in state.journal if e.tensors)  # arrays cannot say that an entry is empty
    assert wire.from_arrays(wire.to_arrays(State({}, journal))).positions == State({}, journal).positions


def test_a_position_survives_a_checkpoint(tmp_path: Path):
    state = State({}, (entry(1), entry(2, seed=9)))
    checkpoint.save(tmp_path / "state.safetensors", state, {})
    assert checkpoint.load(tmp_path / "state.safetensors")[0].positions == state.positions


VALUES = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    "other",
    [
        Entry(2, 5, {"w": VALUES}),
        Entry(1, 6, {"w": VALUES}),
        Entry(1, 5, {"v": VALUES}),
        Entry(1, 5, {"w": VALUES.reshape(4)}),
        Entry(1, 5, {"w": VALUES.reshape(1, 4)}),
        Entry(1, 5, {"w": VALUES.T}),
        Entry(1, 5, {"w": VALUES.view(torch.int32)}),
        Entry(1, 5, {"w": VALUES + 1e-6}),
        Entry(1, 5, {"w": VALUES, "v": torch.empty(0)}),
        Entry(1, 5, {}),
    ],
    ids=["round", "seed", "name", "shape", "axes", "strides", "dtype", "value", "more", "nothing"],
)
def test_another_entry_has_another_position(other):
    one = Entry(1, 5, {"w": VALUES})
    assert one.position_after(BASE_POSITION) == Entry(1, 5, {"w": VALUES.clone()}).position_after(BASE_POSITION)
    assert one.position_after(BASE_POSITION) != other.position_after(BASE_POSITION)


def test_equal_bits_in_another_layout_are_the_same_entry():
    columns = VALUES.T.contiguous().T
    assert columns.stride() != VALUES.stride()
    assert Entry(1, 5, {"w": columns}).digest == Entry(1, 5, {"w": VALUES}).digest


def test_a_position_depends_on_all_entries_before_it():
    one, two, three = (entry(number) for number in range(3))
    assert State({}, (one, two)).positions[-1] != State({}, (two, one)).positions[-1]
    assert State({}, (one, three)).positions[-1] != State({}, (two, three)).positions[-1]
    assert len(set(State({}, (one, one, one)).positions)) == 4


# ---------------------------------------------------------------------- the part that a receiver lacks


@given(states(), st.data())
def test_the_journal_after_a_position_continues_from_it(state, data):
    place = data.draw(st.integers(0, len(state.journal)))
    cut = state.after(state.positions[place])
    assert (
        cut.journal == state.journal[place:]
        or cut.positions == state.positions[state.positions.index(state.positions[place]) :]
    )
    assert cut.positions[-1] == state.positions[-1]
    assert cut.since == state.positions[place]
    assert {n: raw(t) for n, t in cut.tensors.items()} == {n: raw(t) for n, t in state.tensors.items()}
    again = wire.unpack(wire.pack(cut))
    assert (again.since, again.positions) == (cut.since, cut.positions)


@pytest.mark.slow
@given(states(), states())
def test_a_position_of_another_journal_leaves_the_state_whole(state, other):
    assume(other.positions[-1] not in state.positions)
    assert state.after(other.positions[-1]) is state


def test_numbers_count_tensors_and_entries():
    state = State({"w": torch.zeros(3, 4), "s": torch.zeros(())}, (entry(1), entry(2)))
    assert state.numbers == 12 + 1 + 2 * 128
    assert state.after(state.positions[1]).numbers == 12 + 1 + 128


@pytest.mark.parametrize(
    "since",
    ["../../outside", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "/etc", " ", 5, None, ["a" * 32], {}],
)  # fmt: skip
def test_a_since_that_is_no_position_is_refused(since):
    """On a node it becomes the name of a folder."""
    import json
    import zlib

    records = wire.pack(State({"w": torch.ones(2)}))
    index = json.loads(zlib.decompress(records["index"]["index"])) | {"since": since}  # type: ignore[index,arg-type]
    records["index"]["index"] = zlib.compress(json.dumps(index).encode())  # type: ignore[index,call-overload]
    with pytest.raises(Refused, match="is not a journal position") as refused:
        wire.unpack(records)
    assert len(str(refused.value)) < 300


# ---------------------------------------------------------------------- models that catch up


def test_a_model_goes_on_from_where_it_is(strategy: Listening, model: TunedModel) -> None:
    assert journal.installed(strategy, model, state_of(1)) is model
    assert journal.installed(strategy, model, state_of(1, 2, 3)) is model
    assert journal.installed(strategy, model, state_of(1, 2, 3)) is model
    assert strategy.heard == [1, 2, 3]
    assert same(values(model), fresh_at(strategy, state_of(1, 2, 3)))


@pytest.mark.parametrize("wanted", [(), (1,), (2, 1), (4,)], ids=["base", "earlier", "turned", "other"])
def test_a_model_that_is_elsewhere_is_built_from_the_base(
    strategy: Listening, model: TunedModel, wanted: tuple[int, ...]
) -> None:
    """Another run's journal in the same process, an earlier place, the base itself."""
    journal.installed(strategy, model, state_of(1, 2))
    found = journal.installed(strategy, model, state_of(*wanted))
    assert found is not model
    assert strategy.heard == [1, 2, *wanted]
    assert same(values(found), fresh_at(strategy, state_of(*wanted)))
    assert tuned_model(found.base, found.config, found.rank, found.device) is found


def test_a_replay_that_broke_off_is_not_gone_on_with(strategy: Listening, model: TunedModel) -> None:
    """An entry with a layer that there is not, after one that moved something."""
    state = state_of(1)
    broken = Entry(2, 0, entry(2).tensors | {"nowhere.weight": torch.ones(2, 2)})
    with pytest.raises(KeyError):
        journal.installed(strategy, model, State(state.tensors, (*state.journal, broken)))
    assert model.position == NOWHERE
    found = journal.installed(strategy, model, state)
    assert found is not model
    assert same(values(found), fresh_at(strategy, state))


def test_entries_that_are_there_are_not_asked_for(strategy: Listening, model: TunedModel) -> None:
    state = state_of(1, 2, 3)
    journal.installed(strategy, model, state_of(1, 2))
    asked: list[str] = []

    def ask(mark: str) -> Entry:
        asked.append(mark)
        return state.journal[state.positions.index(mark) - 1]

    journal.installed_from(strategy, model, state, lambda reached: state.positions[2:], ask, lambda mark: {})
    assert asked == [state.positions[3]]


def test_frozen_weights_that_a_round_wrote_are_put_back(strategy: Listening, model: TunedModel) -> None:
    weight = {f"{ADAPTED}.weight": torch.zeros(64, 64)}
    whole = State(state_of(1).tensors | weight, state_of(1).journal)
    first = journal.installed(strategy, model, whole)
    assert not first.frozen[f"{ADAPTED}.weight"].any()
    assert journal.installed(strategy, first, whole) is first  # the start writes it anew
    found = journal.installed(strategy, first, state_of(1))
    assert found is not first
    assert same(values(found), fresh_at(strategy, state_of(1)))


def test_a_strategy_without_a_journal_says_so(model: TunedModel) -> None:
    with pytest.raises(TypeError, match="'fedavg' keeps no journal, but was sent an entry of round 1"):
        journal.installed(strategies.load("fedavg"), model, State({}, (entry(1),)))


# ---------------------------------------------------------------------- the ground


def test_the_reset_value_of_a_trained_tensor_is_shifted() -> None:
    """A tensor that trains stands on its fresh value: a shift shows after a reset, not before."""
    model = toy_model(strategies.load("fedavg"), 3, seed=2)
    before = snapshot(model.trained)
    model.shift(FACTORS[0], torch.ones(OUTPUTS, 3))
    assert torch.equal(model.trained[FACTORS[0]].detach(), before[FACTORS[0]])
    model.reset([FACTORS[0]])
    torch.testing.assert_close(model.trained[FACTORS[0]].detach(), before[FACTORS[0]] + 1)


def test_a_shift_is_rounded_once() -> None:
    """1 + (2^-8 + 2^-17) in bfloat16 is 1 + 2^-7; with the change rounded first it would be a tie, and 1."""
    model = toy_model(strategies.load("flora"), 3, seed=2)
    model.frozen[WEIGHT].data = torch.ones(OUTPUTS, INPUTS, dtype=torch.bfloat16)
    model.shift(WEIGHT, torch.full((OUTPUTS, INPUTS), 2.0**-8 + 2.0**-17, dtype=torch.float64))
    assert torch.equal(model.frozen[WEIGHT].detach(), torch.full((OUTPUTS, INPUTS), 1 + 2.0**-7, dtype=torch.bfloat16))


def test_saved_base_weights_do_not_depend_on_earlier_draws(tmp_path: Path) -> None:
    """Two labels: the base has no head for them, so one is drawn."""
    config = replace(TASK, data=replace(TASK.data, labels=("odd", "even")))
    model = build(server_base(Model(), server_store()), config, 2, "cpu")
    model.shift(f"{ADAPTED}.weight", torch.ones(64, 64))
    model.position = "elsewhere"
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        save(model, tmp_path / str(seed), "unused")
        assert torch.equal(torch.random.get_rng_state(), before)
    one, other = ((tmp_path / seed / "base" / "model.safetensors").read_bytes() for seed in "12")
    assert one == other
