"""Two of Flower's programs, as a simulation needs them: `programs.py superlink ...` and `programs.py simulation ...`.

The SuperLink takes runs from whoever knows a secret. Flower's control interface can ask for credentials, but its open
edition has nothing that checks them. What checks them here is a plugin of ours for that interface; Flower's command
line sends the secret as it would send the token of an account.

The simulation's workers are started again when they die. Flower puts a worker (a Ray actor) that has died back among
those that are free, where it fails every message that it is handed. Ray starts such a worker again where it was told so
when the worker was made, and hands it the message that it died of once more.

Both end with the process that started them. This file is started by its path and imports nothing of ours.
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
RESTARTED = {"max_restarts": -1, "max_task_retries": 1}  # options of an actor: without an end; a message once more
LOOK_EVERY = 0.2  # seconds
GRACE = 3.0  # seconds that Flower has to end in good order, which without a SuperLink it never does


def superlink(parent: int) -> None:
    """Run `flower-superlink`. Raises RuntimeError where this Flower has no such plugins."""
    from flwr.common.constant import ACCESS_TOKEN_KEY, AuthnType
    from flwr.superlink import config_loader
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli import flower_superlink

    secret = os.environ[SECRET].encode()

    class Secret(NoOpControlAuthnPlugin):
        """There is one account, of whoever knows the secret."""

        def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, Any]:
            said = str(dict(metadata).get(ACCESS_TOKEN_KEY, "")).encode()
            if not hmac.compare_digest(said, secret):
                return False, None
            return super().validate_tokens_in_metadata(metadata)

        def refresh_tokens(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[None, None]:
            return None, None

    if not hasattr(config_loader, "get_control_authn_plugins"):
        raise RuntimeError("this Flower takes no plugins for its control interface")
    config_loader.get_control_authn_plugins = lambda: {AuthnType.OIDC: Secret}
    os.environ["FLWR_OIDC_ENABLED"] = "1"  # ask for credentials, and end where nothing checks them
    _end_with(parent, grace=0.0)  # in good order takes as long as somebody reads a log
    flower_superlink()


def simulation(parent: int) -> None:
    """Run `flwr-simulation`."""
    import ray
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.simulation.app import flwr_simulation

    class Backend(raybackend.RayBackend):
        """Ray as Flower uses it, with other options for its actors."""

        def _validate_client_resources(self, config: dict[str, Any]) -> dict[str, int | float]:
            return super()._validate_client_resources(config) | RESTARTED  # it gives them to every actor

        def terminate(self) -> None:
            """Not as Flower does, by a message that a worker dies of: that would be started again."""
            while self.pool and self.pool.pool:
                ray.kill(self.pool.pool.pop())  # type: ignore[arg-type]  # Flower says another type
            super().terminate()

    raybackend.RayBackend = Backend  # type: ignore[misc]  # Flower has no other way to name a backend
    _end_with(parent, grace=GRACE)
    flwr_simulation()


def _end_with(parent: int, grace: float) -> None:
    """End when the process that started this one has ended, so many seconds later at the latest, with all that it has
    started itself."""

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
