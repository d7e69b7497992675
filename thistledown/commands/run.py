"""`thistledown run`: one simulated run on its own SuperLink, from the checked settings to the summary."""

import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import tomli_w

from server_app.results.endings import at_work, hint, interrupted_in, locked
from server_app.results.started import nested
from server_app.resuming import rounds_done
from task.arithmetic import environment_of
from task.schema import ConfigError
from thistledown.commands.follower import Follower, Say
from thistledown.estimates.machine import machine
from thistledown.processes.client import SuperLinkError
from thistledown.processes.superlink import SuperLink
from thistledown.settings import Settings, check_simulated
from thistledown.summary import headline

FINISHED = "finished:completed"
START = 600.0  # seconds from a run's submission, within which it has to begin
CONNECT = 10.0  # seconds that a Ray cluster has to accept a connection
STRAY = 20  # lines of Flower's own output that are shown


class Running(Protocol):
    """A SuperLink that runs were submitted to."""

    def check(self) -> None:
        """Raise SuperLinkError if one of Flower's programs has ended by itself."""

    def status(self, run_id: str) -> tuple[str, str]:
        """Return Flower's status of a run and its details."""

    def tail(self, lines: int = 20) -> str:
        """Return the end of the SuperLink's own log."""


Place = TypeVar("Place", bound=Running)


def run(settings: Settings, say: Say, *, verbose: bool = False, ray_address: str = "") -> bool:
    """Simulate the run and return whether it completed, on the Ray cluster at `ray_address` if there is one. No process
    that this starts keeps running, however the run ends.

    Raises ConfigError for a configuration that cannot be simulated, SuperLinkError if Flower does not start or answer.
    """
    if ray_address:
        _reach(ray_address)
    done = begun(settings, say, elsewhere=bool(ray_address))
    say("starting Flower's SuperLink")
    start = partial(SuperLink, environment_of(settings.config.task), ray_address)
    return followed(settings, start, partial(_submitted, settings), say, verbose=verbose, done=done)


def _reach(address: str) -> None:
    """Raise ConfigError if nothing listens at the address of a Ray cluster: Ray would try again and again, and say
    nothing."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError([f"--ray-address {address}: write HOST:PORT, as `ray start --head` shows it"])
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigError([f"--ray-address {address} cannot be reached: {error}; is Ray running there?"]) from error


def begun(settings: Settings, say: Say, *, elsewhere: bool = False) -> int:
    """Print what will run, and return the last round of the run that is resumed; -1 if none is. Nodes that work
    `elsewhere` do not share this machine's cores and memory. Raises ConfigError for a configuration that cannot be
    simulated."""
    check_simulated(settings.config)
    say(headline(settings.config))
    for line in () if elsewhere else machine(settings.config):
        say(line)
    done = resumed_after(settings, say)
    for dead in interrupted_in(Path(settings.config.server.output_dir)):
        say(f"the run in {dead} was interrupted; {hint(dead) or 'it has no checkpoint to resume from'}")
    return done


def resumed_after(settings: Settings, say: Say) -> int:
    """Return the last round of the run that is resumed, and say so; -1 if none is. Raises ConfigError if it still
    works."""
    server = settings.config.server
    if not server.resume:
        return -1
    if locked(Path(server.resume)):
        raise ConfigError([at_work(Path(server.resume))])
    done = rounds_done(Path(server.resume), server.resume_from)
    say(f"resuming {server.resume} after round {done}")
    return done


def followed(
    settings: Settings,
    start: Callable[[], AbstractContextManager[Place]],
    submit: Callable[[Place], "subprocess.Popen[str]"],
    say: Say,
    *,
    verbose: bool = False,
    done: int = -1,
) -> bool:
    """Start a SuperLink, submit the run to it, show its rounds from `done` + 1 on, and return whether it completed."""
    follower = Follower(settings.config, say, verbose=verbose, done=done)
    with follower.interruptions(SuperLinkError), follower.log, start() as superlink:  # whose start makes a folder
        with follower.bar():
            code = _read(submit(superlink), follower)
        superlink.check()
        status, details = superlink.status(follower.run_id) if follower.run_id else ("", "")
        if status != FINISHED:
            follower.log.write(f"\n--- the SuperLink's own log\n{superlink.tail(200)}\n")
    if not follower.run_id:
        return follower.concluded(f"Flower did not accept it (exit code {code}):\n{follower.stray(STRAY)}")
    return follower.concluded("" if status == FINISHED else details or status)


def _submitted(settings: Settings, superlink: SuperLink) -> "subprocess.Popen[str]":
    config, simulation = settings.config, settings.config.server.simulation
    values = tomli_w.dumps(nested(config.flat))
    return superlink.submit(settings.app, values, simulation.num_supernodes, simulation.num_cpus, simulation.num_gpus)


def _read(process: "subprocess.Popen[str]", follower: Follower) -> int:
    """Read the log to its end and return the exit code of `flwr run`, which does not depend on the run's success.

    Raises SuperLinkError for a run that does not begin: Flower gives up each process that needs more than half a minute
    until it first reports, as on a machine that has too much to do, and starts the next one, for ever.
    """
    assert process.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.terminate()

    patience = threading.Timer(START, give_up)
    patience.daemon = True
    patience.start()
    try:
        for line in process.stdout:
            follower.read(line)
            if follower.begun:
                patience.cancel()
    finally:
        patience.cancel()
    follower.end()
    code = process.wait()
    if late.is_set():
        raise SuperLinkError(
            f"Flower has not begun the run after {START:g} s, perhaps as this machine has too much else to do; try "
            "again later, or simulate by `thistledown run --engine local`, which needs no Flower processes"
        )
    return code
