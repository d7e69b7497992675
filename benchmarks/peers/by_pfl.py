"""A federation by pfl, under torchrun, as its own benchmarks set one up; needs the package pfl.

torchrun --nproc_per_node 2 -m benchmarks.peers.by_pfl FOLDER
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal import ops
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers.case import Case, Rows

EVALUATED = 32  # rows at a time


class Learner(torch.nn.Module):
    """A model of transformers with the two methods that pfl calls."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def loss(self, **batch: Any) -> torch.Tensor:
        """Return the loss of a batch in training mode."""
        self.model.train()
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    @torch.no_grad()
    def metrics(self, **batch: Any) -> dict[str, Weighted]:
        """Return loss and accuracy of a batch."""
        self.model.eval()
        output, rows = self.model(**batch), len(batch["labels"])
        right = int((output.logits.argmax(-1) == batch["labels"]).sum())
        return {"loss": Weighted(float(output.loss) * rows, rows), "accuracy": Weighted(right, rows)}


class Rounds(TrainingProcessCallback):
    """Prints the accuracy of every round."""

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Print what was measured."""
        if ops.get_ops().distributed.global_rank == 0:
            print(
                f"round {central_iteration + 1}: {aggregate_metrics.to_simple_dict().get('Central val | accuracy')}",
                flush=True,
            )
        return False, type(aggregate_metrics)()


class Batches(Dataset):
    """A data set whose batches are keyword arguments, and whose rows come in another order every time."""

    def __init__(self, rows: Rows, shuffled: bool, **more: Any) -> None:
        self._rows, self._shuffled = rows, shuffled
        super().__init__(raw_data=(rows["labels"],), **more)

    def iter(self, batch_size: int | None) -> Any:
        """Yield batches."""
        count = len(self._rows["labels"])
        order = torch.randperm(count) if self._shuffled else torch.arange(count)
        for positions in order.split(batch_size or count):
            yield {name: tensor[positions] for name, tensor in self._rows.items()}

    def get_worker_partition(self) -> "Batches":
        """Return the rows that this process scores."""
        own = list(ops.get_ops().distributed.distribute_range(len(self._rows["labels"])))
        return Batches({name: tensor[own] for name, tensor in self._rows.items()}, shuffled=False)


def main() -> None:
    """Run the federation in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    case = Case.read(folder)
    rows = [case.rows_of(folder, node) for node in range(case.nodes)]

    def of(node: int) -> Batches:
        return Batches(rows[node], shuffled=True, user_id=str(node))

    learner = Learner(case.model())
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    model = PyTorchModel(
        learner,
        local_optimizer_create=functools.partial(torch.optim.AdamW, weight_decay=0.0, fused=True),
        central_optimizer=torch.optim.SGD(trained, lr=1.0),
    )
    users = FederatedDataset(of, get_user_sampler("minimize_reuse", list(range(case.nodes))))
    evaluation = NNEvalHyperParams(local_batch_size=EVALUATED)
    FederatedAveraging().run(
        NNAlgorithmParams(case.rounds, case.rounds + 1, case.nodes, 0),
        SimulatedBackend(training_data=users, val_data=None),
        model,
        NNTrainHyperParams(
            local_batch_size=case.batch,
            local_num_epochs=1 if case.steps else case.epochs,
            local_learning_rate=case.rate,
            local_num_steps=case.steps or None,
        ),
        evaluation,
        [CentralEvaluationCallback(Batches(case.test(folder), shuffled=False), evaluation), Rounds()],
    )


if __name__ == "__main__":
    main()
