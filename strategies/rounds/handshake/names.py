"""How names are bound to keys.

Seeds, order, cohorts and ranks depend on a node's name, which the node chooses. It cannot choose its key: a SuperNode
proves its key to the SuperLink with every call, and ServerApps learn from the SuperLink a node's key and the name that
the key was registered under (`flwr supernode register KEY.pub --name NAME`). So a registered name belongs to its key,
whoever is connected. A node without a registered name is believed, as far as `node-names` allows.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.serverapp import Grid

from strategies.exchange.federation import FIRST_KEY, REGISTERED
from strategies.exchange.types import Profile, Refused
from strategies.rounds.run_state import RunState

LOG = logging.getLogger("flwr")
SAID = re.compile(r" \(node '([^']{1,80})'\)$")  # at the end of the errors of `client_app.public_errors`
REGISTER = "flwr supernode register KEY.pub --name NAME"


@dataclass(frozen=True)
class Identity:
    """What the SuperLink knows of a node: its key as `ssh-keygen -lf` prints it (empty without one, as for simulated
    nodes), and the name that the key was registered under (empty: none)."""

    key: str = ""
    name: str = ""


def identities(grid: Grid) -> dict[int, Identity]:
    """Return the connected nodes, by Flower's id, smallest first."""
    found = {info.node_id: Identity(fingerprint(info.public_key), info.name) for info in grid.get_nodes()}
    return dict(sorted(found.items()))


def fingerprint(public: bytes) -> str:
    """Return the SHA-256 fingerprint of a public key in PEM; empty for anything else."""
    try:
        line = load_pem_public_key(public).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


@dataclass
class Names:
    """The names that the nodes of a run may have; `rule` is `node-names`."""

    rule: str
    run_state: RunState
    nodes: dict[int, Identity]  # that are connected, or were when last checked

    def see(self, nodes: dict[int, Identity]) -> None:
        """Note who is connected. As soon as one node has a registered name, all must have one."""
        self.nodes = nodes
        self.run_state.named = self.run_state.named or any(identity.name for identity in nodes.values())

    def warn(self) -> None:
        """Warn once if names are not bound to keys. Simulated nodes have no keys."""
        if not self._all_registered and any(identity.key for identity in self.nodes.values()):
            LOG.warning("names are not verified: no node is registered under its name (%s)", REGISTER)

    def checked(self, profile: Profile) -> Profile:
        """Return the profile with the node's key. Raises Refused if the name belongs to another key."""
        identity = self.nodes.get(profile.node_id, Identity())
        key = identity.key or "none"
        if identity.name and identity.name != profile.name:
            raise Refused(f"it says it is '{profile.name}', but its key ({key}) is registered as '{identity.name}'")
        if self._all_registered and not identity.name:
            raise Refused(
                f"it says it is '{profile.name}', but its key ({key}) is registered without a name: {REGISTER}"
            )
        owner = self.run_state.keys.get(profile.name, "")
        if self.rule == FIRST_KEY and owner and owner != identity.key:
            raise Refused(f"it says it is '{profile.name}', but its key ({key}) is not the first that said so: {owner}")
        return replace(profile, key=identity.key)

    def registered(self, node_id: int) -> str:
        """Return the name that a node's key was registered under; empty if there is none."""
        return self.nodes.get(node_id, Identity()).name

    def bind(self, profile: Profile) -> None:
        """Note the key that a name has now."""
        before = self.run_state.keys.get(profile.name, "")
        if before and profile.key and before != profile.key:
            LOG.warning("node %s has another key: %s, before it was %s", profile.name, profile.key, before)
        if profile.key:
            self.run_state.keys[profile.name] = profile.key

    @property
    def _all_registered(self) -> bool:
        return self.rule == REGISTERED or self.run_state.named


def said_in(reason: str) -> str:
    """Return the name that a node gives in the reason why it cannot take part, for people only; empty without one."""
    found = SAID.search(reason)
    return found[1] if found else ""


def shared(profiles: Iterable[Profile]) -> dict[int, str]:
    """Return, by node id, why nodes that use one name at the same time are left out: nobody knows whose it is."""
    by_name: dict[str, list[Profile]] = {}
    for profile in profiles:
        by_name.setdefault(profile.name, []).append(profile)
    found: dict[int, str] = {}
    for name, several in by_name.items():
        if len(several) > 1:
            who = ", ".join(f"{profile.node_id} ({profile.key or 'no key'})" for profile in several)
            reason = f"{len(several)} nodes say that they are '{name}': {who}; a name is bound to a key by {REGISTER}"
            found |= {profile.node_id: reason for profile in several}
    return found
