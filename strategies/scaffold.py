"""SCAFFOLD: controls take out of every local step what is peculiar to a node's rows.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
arXiv 1910.06378 (ICML 2020), Algorithm 1 with option II. Node i of N keeps a control c_i, the server c; all are zero at
first. In a round, K_i local steps of rate eta from the server's x, then what the server does with the cohort S:

    y_i <- y_i - eta (g_i(y_i) - c_i + c)
    c_i+ = c_i - c + (x - y_i) / (K_i eta)
    x <- x + sum_{i in S} p_i (y_i - x) / sum_{i in S} p_i,    c <- c + sum_{i in S} p_i (c_i+ - c_i)

with p_i = n_i / n over all N nodes, so that c = sum_i p_i c_i always. The paper's mean is uniform. A node that has not
answered yet counts as the mean of those that have; its c_i is zero. Round 1 is FedAvg's, with c = 0. After it local
steps go towards the common optimum, however the rows differ.

A node sends its update alone. The server knows c_i+ - c_i = -c - (y_i - x) / (K_i eta) from it and from the steps that
the node reports; c travels down with the model, so a node downloads twice as much. Controls are kept times eta, as
what they take from one step, so the server needs no rate: the rate has to stay the same in all rounds. They are exact
for plain SGD on updates that arrive as they were trained (`problems`). What `norm-bound` cuts off an update on the
server, c lacks.

c is the mean of the c_i only if each node has the c_i that the server knows it has. A node therefore says which round
its c_i is of. A store that was emptied, or a reply that did not count, shows in the node's next reply. All controls
then start anew with the next round, and the log says why.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from strategies.algebra.lowrank import truncated
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, added, corner
from strategies.exchange.server_optimizer import MEASURED
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Metrics, State, Update
from task.config import CLASS_MEANS, TaskConfig
from task.models.model import TunedModel
from task.training.micro_batches import Penalty
from task.training.trainer import Trainer

LOG = logging.getLogger("flwr")

COMMON = "control "  # prefix, on the server and sent to nodes: c times eta
MOVED = "moved "  # prefix, in what is combined: how far the cohort's nodes moved in a step
NODE = "node "  # prefix, on the server: the round of each node's last answer, and its rows
OWN = "own control "  # prefix, on a node: c_i times eta
ROUND = "own control's round"  # on a node: the round it is of; 0: it is zero
ANEW = "controls since"  # the round after which all controls started anew
ROWS = "rows of all nodes"  # on the server: that c is a mean over
COHORT = "cohort"  # in what is combined: rows of the cohort, and connected nodes
ANSWERED = "kept-round"  # metric: the round of the control that a node trained with
STEPS = "steps"  # metric: K_i


@dataclass(frozen=True)
class Scaffold(Strategy):
    """FedAvg of controlled steps."""

    is_weighted_mean = False  # it also combines how far nodes move in a step
    additive_across_rounds = False  # controls follow from what arrives in each round

    def problems(self, config: TaskConfig) -> list[str]:
        found = []
        if config.optimizer != "sgd" or config.momentum or config.max_grad_norm:
            found.append(
                "strategy = 'scaffold' needs plain steps, whose gradients an update shows: set optimizer = 'sgd', "
                "without momentum or max-grad-norm"
            )
        if config.learning_rate_min not in (0.0, config.learning_rate):
            found.append("strategy = 'scaffold' needs one learning rate for all rounds: set learning-rate-min = 0")
        if config.warmup_rounds:
            found.append("strategy = 'scaffold' needs one learning rate for all rounds: set warmup-rounds = 0")
        if config.head_init == CLASS_MEANS:
            found.append(
                "strategy = 'scaffold' makes controls of every update, and class means are no steps: set head-init = "
                "'base'"
            )
        if lossy := [wrapper.name for wrapper in self.wrappers if wrapper.encodes]:
            found.append(
                f"strategy = 'scaffold' needs updates as they were trained, and wrapper '{lossy[0]}' changes them: "
                "leave it out"
            )
        return found

    @property
    def fixed_step(self) -> str:
        return "its controls are combined with it"

    # ------------------------------------------------------------------ the server's half

    def start_of(self, state: State, assignment: Assignment) -> State:
        """Return the start of FedAvg, and c once it is not zero."""
        start = super().start_of(state, assignment)
        controls = {n: t for n, t in state.server.items() if n.startswith(COMMON)}
        if not controls:
            return start
        anew = state.server[ANEW]
        return replace(start, tensors=start.tensors | truncated(controls, assignment.rank) | {ANEW: anew})

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        return super().expected(replace(state, server={}), assignment)

    def trained(self, state: State, update: Update) -> Tensors:
        return super().trained(replace(state, server={}), update)

    def refusal(self, state: State, update: Update) -> str:
        steps, kept = update.metrics.get(STEPS), update.metrics.get(ANSWERED)
        if type(steps) is not int or steps < 1:
            return (
                f"strategy 'scaffold' needs the number of its local steps, and its metric '{STEPS}' is {steps!r}; a "
                "policy with reports.rows = 'rounded' hides it"
            )
        if type(kept) is not int or not 0 <= kept < max(1, update.assignment.round):
            return f"its metric '{ANSWERED}' is {kept!r}, and not an earlier round"
        return ""

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        """Return the mean update, the sum of n_i (y_i - x) / K_i, and what each node says of its control."""
        total, moved = WeightedSum(state.tensors), WeightedSum(_controlled(state.tensors))
        nodes: Tensors = {}
        connected = 0
        for update in updates:
            total.add(update.delta, update.weight)
            steps = int(update.metrics.get(STEPS, 1))
            moved.add({name: update.delta[name].double() / steps for name in moved.sums}, update.weight)
            said = [float(update.metrics.get(ANSWERED, 0)), update.weight]
            nodes[NODE + _digest(update.node)] = torch.tensor(said, dtype=torch.float64)
            connected = max(connected, update.assignment.nodes)
        cohort = {COHORT: torch.tensor([total.total, connected], dtype=torch.float64)}
        return total.mean() | {MOVED + name: tensor for name, tensor in moved.sums.items()} | nodes | cohort

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        if COHORT not in combined:  # a round without updates
            return super().apply(state, combined, round)
        server = dict(state.server)
        answers = {name: tensor for name, tensor in combined.items() if name.startswith(NODE)}
        if strange := sum(not _matches(server.get(name), said) for name, said in answers.items()):
            LOG.warning(
                "round %d: %d nodes trained with another control than their last answer that counted left them (their "
                "store was emptied, their rows changed, or an answer was lost): all controls start anew",
                round,
                strange,
            )
            rest = {n: t for n, t in server.items() if n != ROWS and not n.startswith((COMMON, NODE))}
            zero = {n: torch.zeros_like(tensor) for n, tensor in server.items() if n.startswith(COMMON)}
            server = rest | zero | {ANEW: torch.tensor(round)}
        else:
            now = {name: torch.stack([torch.tensor(round).double(), said[1]]) for name, said in answers.items()}
            server |= now | {ANEW: server.get(ANEW, torch.tensor(0))}
            cohort, connected = combined[COHORT].tolist()
            known = [float(tensor[1]) for name, tensor in server.items() if name.startswith(NODE)]
            rows = sum(known) * max(1.0, connected / len(known))
            stays = (float(server[ROWS]) if ROWS in server else rows) - cohort  # the cohort's c_i are without the old c
            for name, moved in ((n.removeprefix(MOVED), t) for n, t in combined.items() if n.startswith(MOVED)):
                old = server.get(COMMON + name, torch.zeros_like(state.tensors[name])).double()
                server[COMMON + name] = ((stays * old - moved.double()) / rows).float()
            server[ROWS] = torch.tensor(rows, dtype=torch.float64)
        return replace(state, tensors=added(state.tensors, combined), server=server)

    # ------------------------------------------------------------------ the node's half

    def install(self, model: TunedModel, start: State) -> None:
        sent = {name: t for name, t in start.tensors.items() if name.startswith(COMMON) or name == ANEW}
        rest = {name: tensor for name, tensor in start.tensors.items() if name not in sent}
        super().install(model, replace(start, tensors=rest))
        held: Tensors = {ROUND: torch.tensor(0), ANEW: sent.get(ANEW, torch.tensor(0))}
        for name, tensor in _controlled(self.exchanged(model)).items():
            zero = torch.zeros_like(tensor, dtype=torch.float32)
            held |= {COMMON + name: sent.get(COMMON + name, zero).to(zero.device), OWN + name: zero.clone()}
        model.replay_state = held

    def private(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        return {n: tensor for n, tensor in model.replay_state.items() if n.startswith(OWN) or n == ROUND}

    def restore(self, model: TunedModel, kept: Tensors) -> None:
        held = model.replay_state
        if int(kept.get(ROUND, 0)) > int(held[ANEW]):
            for name, tensor in kept.items():
                corner(held[name], tensor.shape).copy_(tensor)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        held = model.replay_state
        if not held:  # a model in which nothing was installed
            self.install(model, State(dict(self.exchanged(model))))
            held = model.replay_state
        names = list(_controlled(self.live(model, assignment)))
        rates = {name: trainer.rate_of(model, name) for name in names}
        aside = {name: (held[COMMON + name] - held[OWN + name]) / rate for name, rate in rates.items() if rate}
        delta, metrics = super().train(model, trainer.regularised(partial(_slope, aside)), assignment)
        kept = int(held[ROUND])
        for name in names:
            own, steps = held[OWN + name], int(metrics[STEPS])
            own.sub_(held[COMMON + name]).sub_((delta[name].double() / steps).float().to(own.device))
        held[ROUND] = torch.tensor(assignment.round)
        return delta, {**metrics, ANSWERED: kept}


def _controlled(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the tensors that gradients move."""
    return {n: t for n, t in tensors.items() if t.is_floating_point() and not n.endswith(MEASURED)}


def _slope(aside: Tensors, live: Mapping[str, torch.Tensor]) -> Penalty | None:
    """Return a function for sum <c - c_i, w> over what trains, whose gradient is c - c_i."""
    pairs = [(tensor, aside[name].to(tensor.dtype)) for name, tensor in live.items() if name in aside]
    return (lambda: torch.stack([(tensor * slope).sum() for tensor, slope in pairs]).sum()) if pairs else None


def _digest(node: str) -> str:
    return hashlib.blake2b(node.encode(), digest_size=8).hexdigest()


def _matches(known: torch.Tensor | None, said: torch.Tensor) -> bool:
    """Return whether a node trained with the control that the server knows it has, and weighs what it did."""
    return float(said[0]) == 0 if known is None else bool(torch.equal(known, said))
