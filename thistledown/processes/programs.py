"""Two of Flower's programs, adapted to this machine: `programs.py superlink ...` and `programs.py simulation ...`.

The SuperLink accepts runs only from clients that know a secret. Flower's control interface can ask for credentials, but
its open edition has nothing that checks them, so a plugin of ours does. Flower's command line sends the secret in place
of an account's token.

The simulation's workers are restarted when they die. Flower returns a dead worker (a Ray actor) to its pool, where it
fails every message that it gets. With the right options, Ray restarts such a worker and gives it the message again.
A worker whose whole machine is lost is unavailable until Ray notices, and its message is sent again until then.

Both programs end with the process that started them. This file is run by its path and imports none of our modules.
"""

import contextlib
import hmac
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

SECRET = "THISTLEDOWN_CONTROL_SECRET"  # an environment variable
RESTARTED = {
    "max_restarts": -1,
    "max_task_retries": 1,
}  # options of an actor: unlimited restarts, one retry per message
UNNOTICED, AGAIN = 300.0, 2.0  # seconds that a lost machine may go unnoticed, and between two tries meanwhile
LOOK_EVERY = 0.2  # seconds
GRACE = 3.0  # seconds that Flower has to shut down, which it never does without a SuperLink


def superlink(parent: int) -> None:
    """Run `flower-superlink`. Raises RuntimeError if this version of Flower has no such plugins."""
    from flwr.common.constant import ACCESS_TOKEN_KEY, AuthnType
    from flwr.superlink import config_loader
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli import flower_superlink

    secret = os.environ[SECRET].encode()

    class Secret(NoOpControlAuthnPlugin):
        """Authentication by the secret, with a single account."""

        def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, Any]:
            said = str(dict(metadata).get(ACCESS_TOKEN_KEY, "")).encode()
            if not hmac.compare_digest(said, secret):
                return False, None
            return super().validate_tokens_in_metadata(metadata)

        def refresh_tokens(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[None, None]:
            return None, None

    if not hasattr(config_loader, "get_control_authn_plugins"):
        raise RuntimeError("this version of Flower has no plugins for its control interface")
    config_loader.get_control_authn_plugins = lambda: {AuthnType.OIDC: Secret}
    os.environ["FLWR_OIDC_ENABLED"] = "1"  # ask for credentials, and exit if nothing checks them
    _end_with(parent, grace=0.0)  # a regular shutdown waits for readers of the log
    flower_superlink()


def simulation(parent: int) -> None:
    """Run `flwr-simulation`."""
    import ray
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.simulation.app import flwr_simulation

    class Backend(raybackend.RayBackend):
        """Ray as Flower uses it, with other options for its actors."""

        def _validate_client_resources(self, config: dict[str, Any]) -> dict[str, int | float]:
            return super()._validate_client_resources(config) | RESTARTED  # passed on to every actor

        def process_message(self, message: Any, context: Any) -> Any:
            """Give a message to a worker, and again while its machine is gone and Ray has not noticed yet."""
            deadline = time.monotonic() + UNNOTICED
            while True:
                try:
                    return super().process_message(message, context)
                except ray.exceptions.ActorUnavailableError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(AGAIN)

        def terminate(self) -> None:
            """Kill the workers. Flower ends a worker by a message, after which Ray would restart it."""
            while self.pool and self.pool.pool:
                ray.kill(self.pool.pool.pop())  # type: ignore[arg-type]  # Flower says another type
            super().terminate()

    raybackend.RayBackend = Backend  # type: ignore[misc]  # Flower has no other way to name a backend
    _end_with(parent, grace=GRACE)
    flwr_simulation()


def _end_with(parent: int, grace: float) -> None:
    """End this process and its children at most `grace` seconds after the process `parent` has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        time.sleep(grace)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    {"superlink": superlink, "simulation": simulation}[sys.argv.pop(1)](os.getppid())
