"""`thistledown run --engine local`: one simulated run in processes of this command, without SuperLink and Ray."""

import traceback

import torch

from server_app.config import Simulation
from server_app.main import federate
from task.device import cores
from task.schema import ConfigError
from thistledown.commands.following import Follower, Say
from thistledown.commands.run import begun
from thistledown.settings import Settings, app_folder
from thistledown.simulation.log import all_lines
from thistledown.simulation.simulate import nodes_here


def run(settings: Settings, say: Say, *, verbose: bool = False) -> bool:
    """Simulate the run and return whether it completed. No process keeps running, however the run ends.

    Raises ConfigError for a configuration that cannot be simulated.
    """
    if settings.app != app_folder(None):
        raise ConfigError([f"--engine local runs {app_folder(None)}, not {settings.app}; use --engine ray with --app"])
    done, problem = begun(settings, say), ""
    follower = Follower(settings.config, say, verbose=verbose, done=done)
    with (
        follower.interruptions(),
        follower.log,
        nodes_here(settings.config, workers=nodes_at_once(settings.config.server.simulation)) as grid,
        follower.bar(),  # after the workers, as it starts a thread
        all_lines(follower.read),
    ):
        try:
            federate(grid, settings.config)
        except Exception as error:  # noqa: BLE001 - the run failed; its results folder and its log say why
            problem = f"{type(error).__name__}: {error}"
            follower.log.write(traceback.format_exc())
        follower.end()
    return follower.concluded(problem)


def nodes_at_once(simulation: Simulation) -> int:
    """Return how many nodes the CPUs and GPUs of this machine serve at a time, as Ray would count."""
    by_cores = cores() // simulation.num_cpus
    gpus = torch.cuda.device_count() or torch.xpu.device_count()
    by_gpus = int(gpus / simulation.num_gpus) if simulation.num_gpus else by_cores
    return max(1, min(by_cores, by_gpus, simulation.num_supernodes))
