"""The policy of a node: what its owner allows. It is read from the node's own disk or node config, never from a
message.

Node config names a TOML file by `policy`, or has single keys, `policy.<key>`; one or the other. Every key has a safe
default. Simulated nodes are the server's own machine and user, so there a key that is not set allows everything.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from task.kinds import registry as kinds
from task.schema import ConfigError, build, flatten, group, option, read, schema

FILE, PREFIX = "policy", "policy."
GB = 10**9
ROWS = ("exact", "rounded")  # how a node reports its number of rows


class PolicyError(ConfigError):
    """A policy that cannot be read. The message, with every problem and the path, is for the owner alone."""

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__([f"{where}: {problem}" for problem in problems])
        self.public = "the node's policy cannot be read"


@dataclass(frozen=True)
class Columns:
    """Columns that instructions may read. Empty: those that they name, up to `max_labels` labels."""

    inputs: tuple[str, ...] = option(())
    labels: tuple[str, ...] = option(())
    ids: tuple[str, ...] = option(())
    max_labels: int = option(1000, low=0)  # distinct values of a label column that the owner has not named; 0: any
    publish_labels: tuple[str, ...] = option((), separator="|")  # label names that the server learns


@dataclass(frozen=True)
class Privacy:
    """Privacy that instructions must guarantee for the node's rows."""

    kinds: tuple[str, ...] = option(())  # wrappers, one of which must be in the instructions; empty: none is required
    epsilon: float = option(0.0, low=0.0)  # largest over the node's lifetime; 0: no limit
    delta: float = option(1e-5, low=0.0, high=0.5)  # largest


@dataclass(frozen=True)
class Reports:
    """What a node reports about itself."""

    loss: bool = option(True)  # of training
    scores: bool = option(True)  # of evaluation on the node's own rows
    machine: bool = option(True)  # device, memory, cores, versions
    rows: str = option("exact", choices=ROWS)  # rounded: down to a power of two

    def counted(self, rows: int) -> int:
        """Return the number of rows that a node reports."""
        return rows if self.rows == "exact" else 1 << rows.bit_length() >> 1


@dataclass(frozen=True)
class Policy:
    """What a node's owner allows. An empty list of names allows all; a limit of 0 is no limit."""

    columns: Columns = group(Columns)
    privacy: Privacy = group(Privacy)
    reports: Reports = group(Reports)
    tasks: tuple[str, ...] = option(())
    models: tuple[str, ...] = option(())  # names as instructions have them, or fingerprints
    tunings: tuple[str, ...] = option(())
    strategies: tuple[str, ...] = option(())
    wrappers: tuple[str, ...] = option(())
    offers: bool = option(True)  # take a base that the server sends
    min_cohort: int = option(0, low=0)  # that take part in a round according to the server
    min_rows: int = option(2, low=0)  # that the node has
    min_rows_per_reply: int = option(8, low=0)  # different rows behind an update or a score; all of a smaller node
    min_batch_size: int = option(2, low=1)
    max_decay: float = option(0.1, low=0.0)  # share of the weights that a step takes off: learning-rate x weight-decay
    max_rounds: int = option(10_000, low=0)  # of a run
    max_rank: int = option(1024, low=0)  # of an adapter
    max_steps: int = option(1_000_000, low=0)  # of local training in a round
    max_seconds: float = option(86_400.0, low=0.0)  # of work on a message
    max_base_bytes: int = option(32 * GB, low=0)
    max_store_bytes: int = option(100 * GB, low=0)

    @classmethod
    def of(cls, node: Mapping[str, object], deployed: bool = True) -> "Policy":
        """Return the policy in a node config. Raises PolicyError."""
        inline = {key.removeprefix(PREFIX): value for key, value in node.items() if key.startswith(PREFIX)}
        if FILE not in node:
            return cls._read("node config, policy", inline, deployed)
        if inline:
            raise PolicyError("node config", [f"it names a {FILE} file and has keys of its own as well: use one"])
        return cls.read(str(node[FILE]), deployed)

    @classmethod
    def read(cls, path: str | Path, deployed: bool = True) -> "Policy":
        """Return the policy in a TOML file. Raises PolicyError with every problem."""
        place = Path(path).expanduser()
        try:
            content = tomllib.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            said = f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise PolicyError(str(place), [said]) from error
        return cls._read(str(place), _flat(content), deployed)

    @classmethod
    def _read(cls, where: str, flat: Mapping[str, object], deployed: bool) -> "Policy":
        keys = schema(cls)
        values, problems = read(flat, keys)
        if not deployed:
            values |= {key: keys[key].parse(value) for key, value in flatten(TRUSTING).items() if key not in flat}
        problems += _unknown_names(values)
        if problems:
            raise PolicyError(where, problems)
        return build(cls, values)


# What a simulated node allows if nothing is set.
TRUSTING = Policy(
    columns=Columns(max_labels=0),
    min_rows=0,
    min_rows_per_reply=0,
    min_batch_size=1,
    max_decay=0.0,
    max_rounds=0,
    max_rank=0,
    max_steps=0,
    max_seconds=0.0,
    max_base_bytes=0,
    max_store_bytes=0,
)


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return the values of nested tables under dotted keys; lists as tuples."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def _unknown_names(values: Mapping[str, object]) -> list[str]:
    """Return the problems with names of tasks, tunings, strategies and wrappers that do not exist: a typo must not
    forbid everything."""
    import strategies
    from strategies.exchange.wrapper import NODE
    from task.schema import unknown
    from task.tunings import registry as tunings

    there = {
        "tasks": kinds.names(),
        "tunings": tunings.names(),
        "strategies": strategies.names(),
        "wrappers": strategies.wrapper_names(),
        "privacy.kinds": strategies.wrapper_names(),
    }
    problems = []
    for key, names in there.items():
        for name in values[key]:  # type: ignore[attr-defined]
            if name not in names:
                said = unknown(name, dict.fromkeys(names))  # type: ignore[arg-type]
                problems.append(f"{key}: {said.replace(' key ', ' ')} (there are {', '.join(names)})")
            elif key == "privacy.kinds" and strategies.wrapper_class(name).privacy != NODE:
                problems.append(
                    f"{key}: '{name}' is not a privacy wrapper that a node applies itself, so it cannot be required"
                )
    return problems
