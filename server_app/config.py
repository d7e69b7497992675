"""The run config: the task's settings (which are sent to nodes), the server's own, and every strategy's options.

Flower passes it as one flat dictionary, already merged with the defaults in pyproject.toml. It is parsed once, here.
All problems are reported together, before any node is contacted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import strategies
from server_app.callbacks import tracker
from server_app.callbacks.early_stopping import EarlyStoppingOptions
from server_app.callbacks.tracker import Tracker
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.federation import AUTO_NAMES, FIRST_KEY, REGISTERED, Federation
from strategies.exchange.head_rounds import too_few
from strategies.exchange.privacy import Plan
from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig, lacks_rouge
from task.device import DEVICES, found
from task.kinds import registry as kinds
from task.schema import ConfigError, Flat, Schema, build, flatten, group, option, read, schema


@dataclass(frozen=True)
class Simulation:
    """Settings of the simulation by `thistledown run`; Flower itself does not read them."""

    num_supernodes: int = option(
        10, low=1, doc="nodes that `thistledown run` simulates; plain `flwr run` has --federation-config"
    )
    num_cpus: int = option(
        1, low=1, doc="CPUs per simulated node: nodes that work at once = CPUs of the machine / num-cpus"
    )
    num_gpus: float = option(0.0, low=0.0, doc="GPUs per simulated node; fractions share one")
    dropout: float = option(
        0.0,
        low=0.0,
        high=1.0,
        doc="share of nodes that train in a round and then drop out: their replies are discarded",
    )


@dataclass(frozen=True)
class ServerConfig:
    """Settings that only the server needs."""

    strategy: str = option("fedavg", doc="how a round exchanges and combines: the name of a file in strategies/")
    server_optimizer: str = option(
        "sgd", doc="how the combined update becomes a step: the name of a file in strategies/optimizers/"
    )
    wrappers: tuple[str, ...] = option(
        (), doc="round every update, first on the node: comma-separated names of files in strategies/wrappers/"
    )
    num_server_rounds: int = option(15, low=1, doc="rounds of training")
    fraction_train: float = option(1.0, low=1e-6, high=1.0, doc="share of the nodes that train in a round")
    fraction_evaluate: float = option(
        1.0, low=1e-6, high=1.0, doc="share of the nodes that evaluate, if `evaluate` asks nodes"
    )
    min_train_nodes: int = option(1, low=1, doc="never train on fewer nodes than this")
    min_available_nodes: int = option(1, low=1, doc="wait for this many nodes before the first round")
    node_wait_timeout: float = option(120.0, low=0.0, doc="seconds to wait for them")
    node_names: str = option(
        AUTO_NAMES,
        choices=(AUTO_NAMES, REGISTERED, FIRST_KEY),
        doc="who owns a node's name: registered (its key), first-key, or auto (registered as soon as any is)",
    )
    round_timeout: float = option(3600.0, low=0.1, doc="seconds a round may take; replies later than that are dropped")
    min_success_fraction: float = option(
        0.5,
        low=0.0,
        high=1.0,
        doc="share of a cohort that must send valid replies; otherwise the round fails and the state stays",
    )
    max_failed_rounds: int = option(3, low=1, doc="failed rounds in a row that fail the run")
    evaluate_every: int = option(
        1, low=1, doc="rounds from one measurement to the next; the untrained and the last state are always measured"
    )
    max_weight_ratio: float = option(
        5.0,
        low=0.0,
        doc="a node that claims more rows than this many times the median claim counts as the median; 0: believe all",
    )
    outlier_factor: float = option(
        5.0,
        low=0.0,
        doc="an update longer than this many times the median of the cohort and the newest rounds is refused; 0: none",
    )
    collapse_factor: float = option(
        0.65,
        low=0.0,
        high=1.0,
        doc="a run that scores below this share of its usual score goes back to its last good state; 0: never",
    )
    keep_checkpoints: int = option(
        2, low=0, doc="good states that are kept in addition to the newest one, to go back to"
    )
    examine_rows: int = option(
        64,
        low=0,
        doc="validation rows on which the server judges single updates, to leave out harmful ones; 0: it does not",
    )
    report_predictions: int = option(
        0, low=0, doc="test rows that the report shows with the labels by the base and by the best state; 0: none"
    )
    server_device: str = option("auto", choices=DEVICES, doc="where the server scores: auto, cpu, cuda, mps or xpu")
    output_dir: str = option("", doc="absolute folder for results; empty: outputs/ in the working directory")
    resume: str = option(
        "", doc='results folder of an earlier run to resume, absolute; `thistledown run`: any path, or "latest"'
    )
    resume_from: str = option("last", doc="with resume: last, best, or the number of a saved round (keep-checkpoints)")
    trackers: tuple[str, ...] = option(
        (),
        doc="where the metrics of a run go: comma-separated names of files in server_app/callbacks/trackers/",
    )
    early_stopping: EarlyStoppingOptions = group(EarlyStoppingOptions)
    simulation: Simulation = group(Simulation)


@dataclass(frozen=True)
class RunConfig:
    """A complete, validated run config."""

    task: TaskConfig
    server: ServerConfig
    strategy: Strategy
    trackers: tuple[Tracker, ...]
    flat: Flat  # effective values of all keys that apply to this run

    @classmethod
    def read(cls, flat: Mapping[str, object]) -> "RunConfig":
        """Read Flower's run config. Raises ConfigError with every problem."""
        values, problems = read(flat, keys())
        task, server = build(TaskConfig, values), build(ServerConfig, values)
        problems += task.problems() + _problems(server) + server.early_stopping.problems(task)
        chosen = _strategy(server, values, problems)
        if chosen is not None:
            problems += incompatibilities(chosen, task, _federation(task, server))
        problems += too_few(task, server.num_server_rounds) + _only_warm_up(task, server.num_server_rounds)
        if task.evaluate_generations and task.evaluate == "server":
            problems += lacks_rouge(task.evaluate_generations)
        problems += _unpredicted(task) if server.report_predictions else []
        trackers = _trackers(server, values, problems)
        if problems or chosen is None:
            raise ConfigError(problems)
        flat = flatten(task) | flatten(server) | _option_values(chosen, *chosen.wrappers, *trackers)
        if chosen.server_optimizer:
            flat |= flatten(chosen.server_optimizer, chosen.server_optimizer.prefix)
        return cls(task, server, chosen, trackers, flat)

    def federation(self) -> Federation:
        """Return the settings of the rounds, without base, checkpoint folder and callbacks. Raises DeviceError."""
        return replace(_federation(self.task, self.server), device=found(self.server.server_device))

    def plan(self) -> Plan:
        """Return the plan of the run for the number of simulated nodes."""
        server = self.server
        nodes, rounds = server.simulation.num_supernodes, server.num_server_rounds
        return Plan(rounds, nodes, server.fraction_train, server.min_train_nodes, self.task.seed, config=self.task)


def _unpredicted(task: TaskConfig) -> list[str]:
    """Return why there are no rows to be shown with predictions."""
    kind = kinds.of(task)
    if not (kind.drawn_head and kind.row_labels):
        instead = "; evaluate-generations shows what is written" if kind.writes else ""
        return [f"report-predictions is for kinds with one label a row, not for task.kind = '{kind.name}'{instead}"]
    if task.evaluate == "nodes":
        return ["report-predictions shows test rows of the server: evaluate must be server or both, not nodes"]
    return []


def _only_warm_up(task: TaskConfig, rounds: int) -> list[str]:
    if task.warmup_rounds < rounds:
        return []
    return [f"warmup-rounds = {task.warmup_rounds} leaves no round of num-server-rounds = {rounds} at learning-rate"]


def keys() -> Schema:
    """Return the schema of all run-config keys."""
    return schema(ServerConfig) | schema(TaskConfig) | strategies.option_keys() | tracker.option_keys()


def _federation(task: TaskConfig, server: ServerConfig) -> Federation:
    return Federation(
        seed=task.seed,
        fraction_train=server.fraction_train,
        fraction_evaluate=server.fraction_evaluate,
        min_train_nodes=server.min_train_nodes,
        min_available_nodes=server.min_available_nodes,
        node_wait_timeout=server.node_wait_timeout,
        node_names=server.node_names,
        min_success_fraction=server.min_success_fraction,
        max_failed_rounds=server.max_failed_rounds,
        evaluate_every=server.evaluate_every,
        max_weight_ratio=server.max_weight_ratio,
        outlier_factor=server.outlier_factor,
        collapse_factor=server.collapse_factor,
        keep_checkpoints=server.keep_checkpoints,
        dropout=server.simulation.dropout,
        resume=bool(server.resume),
    )


def _problems(server: ServerConfig) -> list[str]:
    found = []
    if server.output_dir and not Path(server.output_dir).is_absolute():
        found.append(f"output-dir = '{server.output_dir}' must be an absolute path")
    if server.resume_from not in ("last", "best") and not server.resume_from.isdecimal():
        found.append(f"resume-from = '{server.resume_from}' must be last, best or the number of a round")
    return found


def _strategy(server: ServerConfig, values: Mapping[str, Any], problems: list[str]) -> Strategy | None:
    """Return the strategy; on failure return None and add the reasons to `problems`."""
    before = len(problems)
    find: list[tuple[Callable[[str], type], str]] = [
        (strategies.strategy_class, server.strategy),
        (strategies.optimizer_class, server.server_optimizer),
    ]
    for class_named, name in [*find, *((strategies.wrapper_class, name) for name in server.wrappers)]:
        try:
            class_named(name)
        except ConfigError as error:
            problems += error.problems
    return strategies.from_values(values) if len(problems) == before else None


def _trackers(server: ServerConfig, values: Mapping[str, Any], problems: list[str]) -> tuple[Tracker, ...]:
    """Return the trackers and add what is wrong with them to `problems`."""
    found = []
    for name in server.trackers:
        try:
            found.append(build(tracker.tracker_class(name), values, f"{name}."))
        except ConfigError as error:
            problems += error.problems
    problems += [problem for one in found for problem in one.problems()]
    return tuple(found)


def _option_values(*chosen: Strategy | Wrapper | Tracker) -> Flat:
    """Return the options of the chosen extensions by run-config key."""
    return {key: value for one in chosen for key, value in flatten(one, f"{one.name}.").items()}
