"""A federation in this Python process, with the same bits as `thistledown run`."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import client_app
from server_app.callbacks.progress import Progress
from server_app.config import RunConfig
from server_app.main import federate
from server_app.outputs import problem_of
from strategies.exchange.callback import Callback
from strategies.exchange.strategy import Strategy
from strategies.exchange.wrapper import Wrapper
from task.device import cores
from task.models.model import kept_model
from task.schema import ConfigError
from thistledown.outcome import INPUTS, Outcome
from thistledown.settings import check_simulated, continued_in, placed
from thistledown.simulation.grid import InProcessGrid, identity
from thistledown.simulation.inputs import data_settings, model_settings
from thistledown.simulation.keywords import run_config
from thistledown.simulation.log import warnings_alone
from thistledown.simulation.worker_grid import WorkerGrid
from thistledown.summary import headline


def simulate(
    strategy: str | Strategy = "fedavg",
    *,
    data: Any = None,
    model: Any = None,
    wrappers: str | Iterable[str | Wrapper] = (),
    callbacks: Iterable[Callback] = (),
    output_dir: Path | str | None = None,
    workers: int = 1,
    **settings: object,
) -> Outcome:
    """Run a federation and return its outcome. It starts no server, and no other process unless `workers` says so.

    ```python
    outcome = thistledown.simulate("rbla", num_server_rounds=5, lora={"ranks": "2,4,8"})
    pandas.DataFrame(outcome.metrics)
    ```

    Args:
        strategy: a name, or what `strategies.load` returns.
        data: a path, a hub id, a `datasets.Dataset` or `DatasetDict`, a `pandas.DataFrame`, or a mapping of the keys of
            the table `[data]`, such as `{"name": frame, "label-column": "stars"}`. Default: the embedded digits.
        model: a path, a hub id, a `transformers.PreTrainedModel`, a pair of one and its tokenizer or processor, or a
            mapping of the keys of the table `[model]`. Default: the embedded small vision transformer.
        wrappers: names (a string with commas, or a list), or what `strategies.load_wrapper` returns.
        callbacks: further callbacks of the run.
        output_dir: where to write results, in a folder per run as `thistledown run` does; objects given as data or
            model are written there too. None: a temporary folder that lives as long as the outcome.
        workers: processes that nodes work in, at most one per core. 1: nodes work in this process, one after another.
            Results are the same for any number.
        settings: every other run-config key. `num_server_rounds=5` is the key `num-server-rounds`, a group is a
            mapping (`simulation={"num_supernodes": 4}`), and a full key is given by `**{"lora.ranks": "2,4,8"}`.

    Progress is printed, one line per round.

    Raises ConfigError with all problems of the settings. Raises RunFailed, or an error of data or model, if the run
    fails. The messages are those of the command.
    """
    temporary = Path(tempfile.mkdtemp(prefix="thistledown-")).resolve() if output_dir is None else None
    outputs = temporary or Path(output_dir or "").expanduser().absolute()
    try:
        inputs = _Inputs(outputs, temporary is not None)
        named = {"data": data_settings(data, inputs.folder), "model": model_settings(model, inputs.folder)}
        values = run_config(strategy, wrappers, named, {"output-dir": outputs}, settings)
        folder = run_in_process(_checked(values, workers), _say, callbacks, workers=workers)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Outcome(folder, temporary)


class _Inputs:
    """The folder for Python objects, created when it is first needed."""

    def __init__(self, outputs: Path, alone: bool) -> None:
        self._outputs, self._alone = outputs, alone
        self._made: Path | None = None

    def folder(self) -> Path:
        """Return the folder: `inputs` in the outputs of a single run, or a new folder in outputs that runs share."""
        if self._made is None:
            self._outputs.mkdir(parents=True, exist_ok=True)
            self._made = self._outputs / INPUTS if self._alone else Path(tempfile.mkdtemp("", "inputs-", self._outputs))
            self._made.mkdir(exist_ok=True)
        return self._made


def _checked(values: Mapping[str, object], workers: int) -> RunConfig:
    """Return the checked configuration. Relative paths start at the working directory. Raises ConfigError."""
    here = Path.cwd()
    run = RunConfig.read(continued_in(placed(dict(values), here), here))
    check_simulated(run)
    problems = [problem_of(Path(run.server.output_dir)), _problem_of(workers)]
    if any(problems):
        raise ConfigError([problem for problem in problems if problem])
    return run


def _problem_of(workers: int) -> str:
    """Return why there cannot be so many workers, or "" if there can."""
    if isinstance(workers, int) and 1 <= workers <= cores():
        return ""
    return f"workers = {workers!r}: must be a whole number from 1 to {cores()}, the cores that this process may use"


def run_in_process(
    run: RunConfig,
    say: Callable[[str], None],
    callbacks: Iterable[Callback] = (),
    node_configs: Mapping[int, Mapping[str, Any]] | None = None,
    workers: int = 1,
    *,
    writes_model: bool = True,
) -> Path:
    """Run a checked federation in this process and return its results folder; `say` prints its progress and warnings.

    `node_configs` adds to the node configs of nodes, by number. Nodes work in this process, or in several `workers`.
    Without `writes_model` the folder gets no tuned model.
    The state of the process is restored afterwards.
    """
    say(headline(run))
    with nodes_here(run, node_configs, workers) as grid, warnings_alone(say):
        return federate(grid, run, [Progress(say), *callbacks], writes_model=writes_model)


@contextmanager
def nodes_here(
    run: RunConfig, node_configs: Mapping[int, Mapping[str, Any]] | None = None, workers: int = 1
) -> Iterator[InProcessGrid]:
    """Yield a grid of the run's nodes, which are in this process or in `workers`. These start before anything else.

    The state of this process is restored afterwards.
    """
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    try:
        with _grid(run, node_configs, workers) as grid, identity(), torch.random.fork_rng(devices=[]):
            yield grid
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn
        kept_model.cache_clear()


def _grid(
    run: RunConfig, node_configs: Mapping[int, Mapping[str, Any]] | None, workers: int
) -> AbstractContextManager[InProcessGrid]:
    nodes = run.server.simulation.num_supernodes
    if workers > 1:
        return WorkerGrid(run.task, workers, nodes, node_configs)
    return nullcontext(InProcessGrid(client_app.app, nodes, node_configs))


def _say(line: str) -> None:
    print(line, flush=True)
