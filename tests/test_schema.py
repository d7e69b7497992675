"""Options: what pyproject.toml says is what the code reads, values survive the trip, problems are all named."""

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from server_app.callbacks import tracker
from server_app.config import RunConfig, ServerConfig, keys
from strategies.exchange.server_optimizer import prefix_of
from strategies.exchange.strategy import Strategy
from strategies.protocol import instructions
from strategies.registry import optimizer_class, optimizer_names
from task.config import TaskConfig
from task.schema import ConfigError, Option, build, flatten, group, key_of, option, read, schema, unknown

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
APP = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables as dotted keys, as Flower makes a run config of them."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


WRITTEN = flat(APP["config"])
KEYS = keys()


# ---------------------------------------------------------------------- pyproject.toml


def comments() -> dict[str, str]:
    """Return the comment of every key of the app's table."""
    found, table = {}, ""
    for line in PYPROJECT.read_text().partition("[tool.flwr.app.config]")[2].partition("# ----")[0].splitlines():
        if heading := re.fullmatch(r"\[tool\.flwr\.app\.config\.(.+)\]", line):
            table = f"{heading[1]}."
        elif line:
            key, _, comment = line.partition("  # ")
            found[table + key.split(" = ")[0]] = comment
    return found


COMMENTS = {key: comment.strip() for key, comment in comments().items()}


def test_pyproject_has_exactly_the_keys_that_are_read():
    assert sorted(WRITTEN) == sorted(keys())


@pytest.mark.parametrize("key", sorted(WRITTEN))
def test_defaults_in_pyproject_are_those_of_the_code(key):
    assert key in KEYS
    assert KEYS[key].parse(WRITTEN[key]) == KEYS[key].default
    assert type(WRITTEN[key]) is type(KEYS[key].flat(KEYS[key].default))


def test_the_defaults_can_run():
    config = RunConfig.read(WRITTEN)
    assert config.task == TaskConfig()
    assert config.server == ServerConfig()
    assert config.strategy == strategies.load("fedavg")
    assert RunConfig.read({}).flat == config.flat


def test_groups_of_keys_do_not_overlap():
    own = [schema(TaskConfig), schema(ServerConfig)]
    own += [strategies.option_keys(name, [], []) for name in strategies.names()]
    own += [schema(strategies.wrapper_class(name), f"{name}.") for name in strategies.wrapper_names()]
    own += [schema(optimizer_class(name), prefix_of(name)) for name in optimizer_names()]
    own += [schema(tracker.tracker_class(name), f"{name}.") for name in tracker.names()]
    assert sum(len(part) for part in own) == len(keys())


@pytest.mark.parametrize("key", sorted(WRITTEN))
def test_comments_in_pyproject_are_those_of_the_code(key):
    assert KEYS[key].doc
    assert COMMENTS[key] == KEYS[key].doc


# ---------------------------------------------------------------------- one option


def ranged(option: Option, number: type) -> st.SearchStrategy[Any]:
    low = option.low if option.low is not None else -1e6
    high = option.high if option.high is not None else 1e6
    if number is int:
        return st.integers(math.ceil(low), math.floor(high))
    return st.floats(low, high)


def items(separator: str) -> st.SearchStrategy[str]:
    """Text as it can stand in a list: not empty, no separator, no blanks round it."""
    return st.text(min_size=1, max_size=6).map(lambda text: text.replace(separator, "").strip()).filter(bool)


def values(option: Option) -> st.SearchStrategy[Any]:
    if option.choices:
        return st.sampled_from(option.choices)
    if option.type is bool:
        return st.booleans()
    if option.type in (int, float):
        return ranged(option, option.type)
    if option.type is str:
        return st.text(max_size=6)
    item = ranged(option, int) if option.type == tuple[int, ...] else items(option.separator)
    return st.lists(item, max_size=4).map(tuple)


def configs(cls: type) -> st.SearchStrategy[Any]:
    """Instances with every option drawn from what it accepts."""
    drawn = {key: values(item) for key, item in schema(cls).items()}
    return st.fixed_dictionaries(drawn).map(lambda chosen: build(cls, chosen))


CLASSES = [TaskConfig, ServerConfig, *(strategies.strategy_class(n) for n in strategies.names())]
CLASSES += [strategies.wrapper_class(n) for n in strategies.wrapper_names()]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_flatten_and_read_undo_each_other(cls, data):
    config = data.draw(configs(cls))
    for changed_only in (False, True):
        back, problems = read(flatten(config, changed_only=changed_only), schema(cls))
        assert problems == []
        assert build(cls, back) == config
    assert all(isinstance(value, bool | int | float | str) for value in flatten(config).values())


@given(configs(TaskConfig))
def test_changed_only_leaves_out_what_is_default(config):
    short, whole = flatten(config, changed_only=True), flatten(config)
    assert short.items() <= whole.items()
    defaults = {key: item.flat(item.default) for key, item in schema(TaskConfig).items()}
    assert {key for key in whole if key not in short} <= {key for key in whole if whole[key] == defaults[key]}


@pytest.mark.parametrize("labels", [("a|b", "c"), (" cat", "dog"), ("", "dog")])
def test_items_that_text_cannot_carry_do_not_change_on_the_way(labels):
    labelled = Option(tuple[str, ...], (), separator="|")
    try:
        text = labelled.flat(labels)
    except ValueError:
        return
    assert labelled.parse(text) == labels


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (Option(int, 1), "3", "a whole number"),
        (Option(int, 1), 3.0, "a whole number"),
        (Option(int, 1), True, "a whole number"),
        (Option(float, 1.0), "3", "a number"),
        (Option(float, 1.0), True, "a number"),
        (Option(float, 1.0), math.nan, "finite"),
        (Option(float, 1.0), math.inf, "finite"),
        (Option(bool, True), 1, "true or false"),
        (Option(bool, True), "true", "true or false"),
        (Option(str, ""), 3, "text"),
        (Option(str, ""), None, "text"),
        (Option(str, "", choices=("sgd", "adamw")), "adam", "did you mean 'adamw'"),
        (Option(int, 1, low=1), 0, "at least 1"),
        (Option(float, 1.0, high=0.9), 1, "at most 0.9"),
        (Option(tuple[int, ...], (1,)), "2,x", "whole numbers"),
        (Option(tuple[int, ...], (1,)), 2.5, "separated by"),
        (Option(tuple[int, ...], (1,)), True, "separated by"),
        (Option(tuple[int, ...], (1,)), (1, "a"), "(1, 'a')"),
        (Option(tuple[int, ...], (1,), low=1), "2,0", "at least 1"),
    ],
)
def test_the_error_of_a_bad_value_names_good_ones(option, value, words):
    with pytest.raises(ValueError, match="must be") as refused:
        option.parse(value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value", "parsed"),
    [
        (Option(float, 1.0), 3, 3.0),
        (Option(tuple[int, ...], ()), 4, (4,)),
        (Option(tuple[int, ...], ()), " 2, 4,,8 ", (2, 4, 8)),
        (Option(tuple[str, ...], ()), "", ()),
        (Option(tuple[str, ...], (), separator="|"), "a b|c,d", ("a b", "c,d")),
    ],
)
def test_a_good_value_is_taken(option, value, parsed):
    assert option.parse(value) == parsed
    assert type(option.parse(value)) is type(parsed)


# ---------------------------------------------------------------------- many options


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning-rte", "learning-rate"),
        ("lr", "learning-rate"),
        ("fraction-fit", "fraction-train"),
        ("lora.r", "lora.ranks"),
        ("lora-alpha", "lora.alpha"),
        ("mu", "fedprox.mu"),
        ("data.partitoner", "data.partitioner"),
        ("num_server_rounds", "num-server-rounds"),
    ],
)
def test_the_error_of_an_unknown_key_names_its_neighbour(wrong, right):
    assert f"did you mean '{right}'?" in unknown(wrong, keys())


def test_every_key_of_other_tools_leads_to_one_of_ours():
    from task.schema import FOREIGN

    assert set(FOREIGN.values()) <= set(keys())


def test_an_unknown_key_without_a_neighbour_is_said_plainly():
    assert unknown("xyzzy", keys()) == "there is no key 'xyzzy'"


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        RunConfig.read({"lr": 1, "batch-size": 0, "tuning": "lroa", "strategy": "fedavgg", "output-dir": "here"})
    assert len(refused.value.problems) == 5
    for words in ("learning-rate", "batch-size", "'lora'", "'fedavg'", "absolute"):
        assert words in str(refused.value)


def test_one_problem_is_counted_as_one():
    assert str(ConfigError(["x"])) == "1 problem in the configuration:\n  - x"


def test_options_of_another_strategy_are_no_error():
    assert RunConfig.read({"strategy": "rbla", "fedprox.mu": 0.5}).strategy == strategies.load("rbla")


def test_groups_nest_and_names_turn_into_keys():
    @dataclass(frozen=True)
    class Inner:
        top_k: int = option(3)

    @dataclass(frozen=True)
    class Outer:
        sparse_part: Inner = group(Inner)
        rate: float = option(0.5)
        plain: int = 7

    assert key_of("sparse_part") == "sparse-part"
    assert list(schema(Outer, "x.")) == ["x.sparse-part.top-k", "x.rate"]
    values, problems = read({"x.sparse-part.top-k": 9}, schema(Outer, "x."))
    assert problems == []
    assert build(Outer, values, "x.") == Outer(Inner(9), 0.5)
    assert flatten(Outer(Inner(9)), "x.", changed_only=True) == {"x.sparse-part.top-k": 9}


# ---------------------------------------------------------------------- strategies and orders


@pytest.mark.parametrize("name", strategies.names())
def test_a_strategy_survives_the_instructions(name):
    assert instructions.strategy_of(
        instructions.write(TaskConfig(), strategies.load(name), "abc", 8)
    ) == strategies.load(name)


@given(configs(TaskConfig), configs(strategies.strategy_class("fedprox")), st.integers(0, 64))
def test_instructions_contain_all_that_a_node_needs(config, strategy, rank):
    record = instructions.write(config, strategy, "abc", rank)
    assert instructions.strategy_of(record) == strategy
    if not config.problems():
        assert instructions.task_of(record) == config
    assert (record["base-fingerprint"], record["global-rank"]) == ("abc", rank)


def test_loading_by_name():
    strategy: Strategy = strategies.load("fedprox", mu=0.5)
    assert strategy.name == "fedprox"
    assert strategies.load("fedprox", mu=1) == strategies.load("fedprox", mu=1.0)
    with pytest.raises(ConfigError, match="did you mean 'fedprox'"):
        strategies.load("fedprx")
    with pytest.raises(ConfigError, match="fedprox: mu must be at least 0"):
        strategies.load("fedprox", mu=-1)
    with pytest.raises(ConfigError, match="no key 'nu'"):
        strategies.load("fedprox", nu=1)
    with pytest.raises(ConfigError, match="did you mean 'half'"):
        strategies.load_wrapper("halff")
