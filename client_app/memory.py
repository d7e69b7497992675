"""What a node keeps from one message to the next: the journal in its store, private tensors in Flower's own state.

An entry is kept once per store, in a folder named by the mark that it leads to, with the mark that it follows on.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import RecordDict

from client_app.consent import NodeError
from client_app.local import Local
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors, corner, snapshot
from strategies.exchange import checkpoint, journal, wire
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.vocabulary import BASE_MARK, Entry, State, mark_after
from task.model import TunedModel

KIND, GROUNDS = "journals", "grounds"
ENTRY, BEFORE, WEIGHTS = "entry.safetensors", "before", "weights.safetensors"
MODEL = "private"  # whose tensors are kept in the node's state: of its model
RECORDS = ("arrays", "index")  # that tensors are packed into
KEPT_FOR = 14 * 24 * 3600  # seconds that an entry stays in a store; whoever still wants it is sent it again


class Memory:
    """The memory of one node."""

    def __init__(self, local: Local) -> None:
        self.store, self.state = local.store, local.state

    def installed(self, strategy: Algorithm, model: TunedModel, start: State) -> TunedModel:
        """The model as the server wants this node to have it, private tensors included. Raises NodeError."""
        marks = self._path_to(self._added(start))
        model = journal.installed_from(
            strategy, model, start, marks, lambda n: self._entry(marks[n + 1]), lambda: self._ground(marks[0])
        )
        for name, tensor in truncated(self.kept(), start.rank or model.rank).items():
            corner(model.trained[name].data, tensor.shape).copy_(tensor)  # this round's rank may be another
        return model

    def kept(self, whose: str = MODEL) -> Tensors:
        """The tensors that this node keeps of its model, or for somebody else."""
        names = {f"{whose}-{part}": part for part in RECORDS}
        own = {names[name]: record for name, record in self.state.items() if name in names}
        return wire.unpack(RecordDict(own)).tensors if own else {}

    def keep(self, tensors: Mapping[str, torch.Tensor], whose: str = MODEL) -> None:
        """Keep these tensors on this node, instead of those kept before."""
        for part in RECORDS:
            self.state.pop(f"{whose}-{part}", None)
        if tensors:
            for part, record in wire.pack(State(snapshot(tensors))).items():
                self.state[f"{whose}-{part}"] = record

    # ------------------------------------------------------------------ the journal

    def _added(self, start: State) -> str:
        """Keep the weights or the entries that came; the mark after the last."""
        mark = start.since
        if start.ground:
            with self.store.made(GROUNDS, mark) as folder:
                if folder is not None:
                    self._forget_old()
                    checkpoint.save(folder / WEIGHTS, State(start.ground), {})
        for entry in start.journal:
            following = mark_after(mark, entry)
            with self.store.made(KIND, following) as folder:
                if folder is not None:
                    self._forget_old()
                    checkpoint.save(folder / ENTRY, State({}, (entry,)), {})
                    (folder / BEFORE).write_text(json.dumps(mark))
            mark = following
        return mark

    def _path_to(self, mark: str) -> list[str]:
        """All marks up to this one, from the base or from weights that are kept, whichever is nearer. Raises NodeError
        where the store has lost a part."""
        path = [mark]
        while path[-1] != BASE_MARK and not self.store.path(GROUNDS, path[-1]).exists():
            place = self.store.path(KIND, path[-1]) / BEFORE
            if not place.exists():
                raise NodeError(f"the store {self.store.root} lacks a part of the journal, up to {path[-1]}")
            path.append(json.loads(place.read_text()))
        return path[::-1]

    def _entry(self, mark: str) -> Entry:
        state, _ = checkpoint.load(self.store.path(KIND, mark) / ENTRY)
        return state.journal[0]

    def _ground(self, mark: str) -> Tensors:
        state, _ = checkpoint.load(self.store.path(GROUNDS, mark) / WEIGHTS)
        return state.tensors

    def _forget_old(self) -> None:
        """Remove old entries and weights: a journal can be as large as a model."""
        for kind in (KIND, GROUNDS):
            for folder in self.store.path(kind, "").glob("*"):
                if _idle(folder) > KEPT_FOR:
                    shutil.rmtree(folder, ignore_errors=True)


def _idle(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0
