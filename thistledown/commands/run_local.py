"""`thistledown run --engine local`: one simulated run in processes of this command, without SuperLink and Ray."""

import traceback

from server_app.main import federate
from task.schema import ConfigError
from thistledown.commands.follower import Follower, Say
from thistledown.commands.run import begun
from thistledown.estimates.machine import at_once
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
        nodes_here(settings.config, workers=at_once(settings.config)[0]) as grid,
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
