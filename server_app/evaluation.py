"""The server scores the state by being its own client: what is scored is what a node of full rank would get."""

from dataclasses import dataclass

from strategies.exchange.contract import Strategy
from strategies.exchange.journal import held
from strategies.exchange.vocabulary import Metrics, State
from task.base import server_base
from task.config import TaskConfig
from task.data import prepare
from task.side_by_side import batches_at_once
from task.store import server_store
from task.train import evaluate


@dataclass(frozen=True)
class Evaluator:
    """The metrics of a state on the validation part (which chooses) and the test part."""

    strategy: Strategy
    config: TaskConfig
    device: str

    def __call__(self, state: State) -> Metrics:
        base = server_base(self.config.model, server_store())
        model = held(self.strategy, base, self.config, state, self.device)
        parts = prepare(self.config, base.folder, server_store())
        at_once = batches_at_once(self.device, self.config.threads)  # nodes wait meanwhile
        scores: Metrics = {}
        for name, rows in (("validation", parts.validation), ("test", parts.test)):
            for metric, value in evaluate(model, rows, self.device, at_once).items():
                scores[f"{name}-{metric}"] = value
        return scores
