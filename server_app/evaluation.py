"""The server scores the state by being its own client: what is scored is what a node of full rank would get."""

from dataclasses import dataclass

from strategies.exchange import journal
from strategies.exchange.contract import Strategy
from strategies.exchange.vocabulary import Metrics, State, Ticket
from task.base import Base, server_base
from task.config import TaskConfig
from task.data import prepare
from task.model import TunedModel, tuned_model
from task.store import server_store
from task.train import evaluate


@dataclass(frozen=True)
class Evaluator:
    """Loss and accuracy of a state on the validation part (which chooses) and the test part."""

    strategy: Strategy
    config: TaskConfig

    def __call__(self, state: State) -> Metrics:
        base = server_base(self.config.model, server_store())
        model = installed(self.strategy, base, self.config, state)
        parts = prepare(self.config, base.folder, server_store())
        scores: Metrics = {}
        for name, rows in (("validation", parts.validation), ("test", parts.test)):
            for metric, value in evaluate(model, rows, "cpu").items():
                scores[f"{name}-{metric}"] = value
        return scores


def installed(strategy: Strategy, base: Base, config: TaskConfig, state: State) -> TunedModel:
    """This process's model with the whole state in it."""
    model = tuned_model(base, config, state.rank, "cpu")
    whole = Ticket(round=0, rounds=0, seed=0, rank=state.rank)
    return journal.installed(strategy, model, strategy.start_of(state, whole))
