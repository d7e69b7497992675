"""What a node stores on its disk from one message to the next: the journal, and its own client state.

An entry is stored once per store, in a folder named by the journal position that it leads to, together with the
position before it.

The client state (private tensors, what wrappers keep) is stored by run and node, as it was after each of the last two
rounds that the node trained in. A round that is repeated because the server was killed therefore starts from the same
state. No message can name another node's state: the name is the node's own.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from client_app.local import Local
from client_app.public_errors import NodeError
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors, snapshot
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import BASE_POSITION, Entry, State
from strategies.protocol import checkpoint, journal
from strategies.protocol.instructions import RUN
from task.models.model import TunedModel
from task.storage.store import recipe_hash

LOG = logging.getLogger("flwr")
KIND, BASE_WEIGHTS, OWN = "journals", "grounds", "own"
ACCOUNT = "account.jsonl"
ENTRY, WEIGHTS = "entry.safetensors", "weights.safetensors"
MODEL = "private"  # key of the model's private tensors
VERSIONS = 2  # of the client state
DAY = 24 * 3600  # seconds
KEPT_FOR = 14 * DAY  # how long things stay in a store; whoever still needs an entry is sent it again
SWEPT = "swept"  # a file of a store: when old things were last removed


class ClientStore:
    """The storage of one node, for one message: the training of a round, or whatever comes `after` it."""

    def __init__(self, local: Local, round: int, *, after: bool = False) -> None:
        self.store = local.store
        self._round, self._after = round, after
        self._own = self.store.path(OWN, recipe_hash([str(local.instructions.get(RUN, "")), local.name]))

    def installed(self, strategy: Strategy, model: TunedModel, start: State) -> TunedModel:
        """Return the model that the server wants this node to have, private tensors included. Raises NodeError."""
        end = self._added(start)
        model = journal.installed_from(
            strategy, model, start, lambda reached: self._path(reached, end), self._entry, self._base_weights
        )
        # Only these: another strategy in the same run would exchange the others, and so reveal them.
        own = strategy.private(model)
        client_state = {name: tensor for name, tensor in self.client_state().get(MODEL, {}).items() if name in own}
        strategy.restore(model, truncated(client_state, start.rank or model.rank))  # this round's rank may be another
        return model

    # ------------------------------------------------------------------ the client state

    @property
    def account(self) -> Path:
        """Return the account file of a simulated node in this run."""
        return self._own / ACCOUNT

    def client_state(self) -> dict[str, Tensors]:
        """Return what the node keeps for its model and for wrappers, by owner: the state before this round, or after
        it."""
        last = self._round if self._after else self._round - 1
        rounds = [number for number in self._versions() if number <= last]
        if not rounds:
            return {}
        try:
            state, _ = checkpoint.load(self._version(rounds[-1]))
        except checkpoint.Damaged as error:  # as in an emptied store, what is lost starts anew
            LOG.warning("%s; this node continues from its earlier state, if anything", error)
            self._version(rounds[-1]).unlink()
            return self.client_state()
        client_state: dict[str, Tensors] = {}
        for name, tensor in state.tensors.items():
            whose, own = name.split("/", 1)
            client_state.setdefault(whose, {})[own] = tensor
        return client_state

    def keep(self, client_state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Store the client state after the training of this round."""
        versions = self._versions()
        named = {f"{whose}/{name}": t for whose, tensors in client_state.items() for name, t in tensors.items()}
        if not named and not versions:
            return
        if not self._own.exists():
            self._forget_old()
            self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
        checkpoint.save(self._version(self._round), State(snapshot(named)), {})
        earlier = [number for number in versions if number < self._round]
        for number in {*versions} - {*earlier[1 - VERSIONS :], self._round}:
            self._version(number).unlink()

    def _versions(self) -> list[int]:
        return sorted(int(path.stem) for path in self._own.glob("*.safetensors"))

    def _version(self, round: int) -> Path:
        return self._own / f"{round}.safetensors"

    # ------------------------------------------------------------------ the journal

    def _added(self, start: State) -> str:
        """Store the weights or the entries that arrived; return the journal position after the last."""
        position = start.since
        if start.base_weights:
            with self.store.made(BASE_WEIGHTS, position) as folder:
                if folder is not None:
                    self._forget_old()
                    checkpoint.save(folder / WEIGHTS, State(start.base_weights), {})
        for entry in start.journal:
            following = entry.position_after(position)
            with self.store.made(KIND, following) as folder:
                if folder is not None:
                    self._forget_old()
                    checkpoint.write_entry(folder / ENTRY, entry, position)
            position = following
        return position

    def _path(self, reached: str, end: str) -> list[str]:
        """Return all positions up to `end`, starting from the model's own, stored weights or the base, whichever is
        nearest. Raises NodeError if the store has lost a part."""
        path = [end]
        while path[-1] not in (BASE_POSITION, reached) and not self.store.holds(BASE_WEIGHTS, path[-1]):
            if not self.store.holds(KIND, path[-1]):
                lacks = f"lacks a part of the journal, up to {path[-1]}"
                raise NodeError(f"the store {self.store.root} {lacks}", f"the node's store {lacks}")
            path.append(checkpoint.position_before(self.store.path(KIND, path[-1]) / ENTRY))
        return path[::-1]

    def _entry(self, position: str) -> Entry:
        return checkpoint.read_entry(self.store.path(KIND, position) / ENTRY)[0]

    def _base_weights(self, position: str) -> Tensors:
        state, _ = checkpoint.load(self.store.path(BASE_WEIGHTS, position) / WEIGHTS)
        return state.tensors

    def _forget_old(self) -> None:
        """Remove what is old, once a day: a journal or a client state can be as large as a model."""
        stamp = self.store.path(SWEPT, "")
        if stamp.exists() and _idle(stamp) < DAY:
            return
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
        for kind in (KIND, BASE_WEIGHTS, OWN):
            for folder in self.store.path(kind, "").glob("*"):
                if _idle(folder) > KEPT_FOR:
                    shutil.rmtree(folder, ignore_errors=True)


def _idle(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0
