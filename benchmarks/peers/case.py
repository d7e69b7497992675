"""One federation for several simulators: the rows of every node and the settings of its training, in a folder.

Everything is what thistledown itself would train on, so that all do the same steps on the same rows from the same base.
Only `write` needs thistledown; a peer reads the folder.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Rows = dict[str, torch.Tensor]
SETTINGS, ROWS, TEST = "case.json", "rows-{}.safetensors", "test.safetensors"


@dataclass(frozen=True)
class Case:
    """How nodes train a model of transformers in `base`: a LoRA of this rank on all linear layers and a head, or all
    weights if the rank is 0."""

    base: str
    auto_class: str
    labels: int
    rank: int
    rate: float
    batch: int
    epochs: int
    steps: int  # in a round; 0: as many as `epochs` need
    rounds: int
    nodes: int

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """Return the case in a folder."""
        return cls(**json.loads((folder / SETTINGS).read_text()))

    def rows_of(self, folder: Path, node: int) -> Rows:
        """Return the model inputs of a node, with labels."""
        return load_file(folder / ROWS.format(node))

    def test(self, folder: Path) -> Rows:
        """Return the model inputs that every round is scored on."""
        return load_file(folder / TEST)

    def model(self) -> Any:
        """Return the model to be trained."""
        import transformers
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        loader = getattr(transformers, self.auto_class)
        model = loader.from_pretrained(
            self.base, num_labels=self.labels, ignore_mismatched_sizes=True, trust_remote_code=False
        )
        if not self.rank:
            return model
        heads = [name for name in ("classifier", "score") if hasattr(model, name)]
        return get_peft_model(model, LoraConfig(r=self.rank, target_modules="all-linear", modules_to_save=heads))

    def steps_of(self, rows: int) -> int:
        """Return the local steps of a node with so many rows."""
        return self.steps or -(-rows // self.batch) * self.epochs


def write(values: dict[str, object], folder: Path) -> Case:
    """Write the federation that these run-config values describe, and return it."""
    from server_app.config import RunConfig
    from task.data.partition import partition
    from task.data.prepared import data_index, prepare
    from task.kinds import registry as kinds
    from task.models.finding import server_base
    from task.storage.store import server_store

    run, store = RunConfig.read(values), server_store()
    task, nodes = run.task, run.server.simulation.num_supernodes
    base = server_base(task.model, store)
    parts = prepare(task, base.folder, store)
    split = partition(task, data_index(task, store), nodes, store)
    for node, own in enumerate(split):
        save_file(_whole(parts.train.select(own)), folder / ROWS.format(node))
    scored = [_whole(rows) for rows in (parts.validation, parts.test)]
    save_file({name: _joined([rows[name] for rows in scored]) for name in scored[0]}, folder / TEST)
    rank = max(task.tuning.budgets()) if task.tuning.has_ranks else 0
    case = Case(
        base=str(base.folder),
        auto_class=kinds.of(task).auto_class,
        labels=len(parts.train.names),
        rank=rank,
        rate=task.learning_rate,
        batch=task.batch_size,
        epochs=task.local_epochs,
        steps=task.local_steps,
        rounds=run.server.num_server_rounds,
        nodes=nodes,
    )
    (folder / SETTINGS).write_text(json.dumps(asdict(case)))
    return case


def _whole(rows: Any) -> Rows:
    return {name: tensor.contiguous() for name, tensor in rows.batch(range(len(rows))).items()}


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return tensors (N_i, ...) one below the other; those of texts are filled up to the longest."""
    if tensors[0].ndim != 2:
        return torch.cat(tensors)
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])
