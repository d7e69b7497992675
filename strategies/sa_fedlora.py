"""SA-FedLoRA (after the abstract): regularised rounds on the whole model, then LoRA whose rank is annealed.

Yang, Liu, Gao, Xu, Wang, "SA-FedLoRA: Adaptive Parameter Allocation for Efficient Federated Learning with LoRA Tuning",
arXiv 2405.09394 **v1** (v2 under that number is another paper). The paper gives two stages and no formulas:

1. Initiating: nodes train all weights with a parameter regularisation against client drift; FedAvg.
2. Annealing: LoRA. As in simulated annealing the rank is high at first (heating), shrinks (annealing) and stays
   low (cooling), and with it what is communicated.

The rest is our choice. In stage 1 node i minimises F_i(w) + (mu / 2) ||w - w^t||^2, with w^t the weights it was
sent (FedProx). Of T rounds, T_init = `initiating-rounds` belong to stage 1; of the T' others the first
floor(`heating` T') heat and the last max(1, ceil(`cooling` T')) cool. With r_0 the largest rank budget, r_T =
`final-rank`, x from 0 to 1 over the rounds between heating and cooling:

    r = r_0 while heating, r_T while cooling, between them r_T + (r_0 - r_T) f(x), rounded, with
    f(x) = (1 - x)^3 (cubic), 1 - x (linear), (1 + cos(pi x)) / 2 (cosine);  exponential: r = r_0 (r_T / r_0)^x

The hand-over: w^T_init becomes the base, as an entry of the journal, so every node is sent it once; adapters begin
with B = 0, and the function does not change. The shrink: the product B A is split again by SVD of its small core, the
best of its rank (Eckart and Young), with the roots of the singular values in B and in A. The cut-off part is added to
the base (`remainder` = merge: an entry of the journal, as large as the removed ranks, and the function does not change)
or lost (drop). The scaling is the same at every rank. If budgets differ, a node trains the leading ranks that it can,
at most r; its update leaves the other ranks unchanged. Factors are averaged as in FedAvg.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from strategies.algebra.lowrank import FLOAT32, ProductSum, factor_names, modules, non_lora, pair
from strategies.algebra.tensors import Tensors, proximal, snapshot
from strategies.exchange.replay import merge_products
from strategies.exchange.strategy import EQUAL_RANKS, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Entry, Metrics, Profile, RunFailed, State
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer

SCHEDULES = ("cubic", "linear", "cosine", "exponential")
ROUNDING = 1e-9  # of a number of rounds: 0.28 of 25 is 7, not slightly more
WAITING = "waiting "  # prefix of names on the server: tensors that adapters will train after the initiating rounds


@dataclass(frozen=True)
class SAFedLora(Strategy):
    """FedAvg of all weights, then of adapters with falling rank."""

    initiating_rounds: int = option(1, low=0, doc="rounds that train and exchange the whole model before the adapters")
    mu: float = option(0.01, low=0.0, doc="weight of the regularisation in these rounds")
    initiating_rate: float = option(0.0, low=0.0, doc="learning rate of all these rounds; 0: learning-rate")
    final_rank: int = option(2, low=1, doc="rank at the end; at the start it is the largest of lora.ranks")
    schedule: str = option("cubic", choices=SCHEDULES, doc="how the rank falls: cubic, linear, cosine, exponential")
    heating: float = option(0.2, low=0.0, high=1.0, doc="share of the other rounds that keep the first rank")
    cooling: float = option(0.2, low=0.0, high=1.0, doc="share of the other rounds that keep the final rank")
    remainder: str = option(
        "merge", choices=("merge", "drop"), doc="what a shrinking rank cuts off: merge into the base, or drop"
    )

    needs_ranks = True
    heterogeneous_ranks = True
    additive_across_rounds = False  # weights give way to factors, and these are split again when the rank falls
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS})

    # ------------------------------------------------------------------ the schedule

    def initiates(self, round: int) -> bool:
        """Return whether this round trains the whole model."""
        return 1 <= round <= self.initiating_rounds

    def annealed(self, round: int, rounds: int, highest: int) -> int:
        """Return the rank of a round after the initiating ones: from `highest` to the final rank, never rising."""
        lowest = min(self.final_rank, highest)
        total = rounds - self.initiating_rounds
        first = math.floor(self.heating * total + ROUNDING)
        last = total - max(1, math.ceil(self.cooling * total - ROUNDING))
        done = round - self.initiating_rounds - 1
        if done >= last:
            return lowest
        x = max(0.0, (done - first) / (last - first)) if last > first else 0.0
        if self.schedule == "exponential":
            return int(highest * (lowest / highest) ** x + 0.5)
        share = {"cubic": (1 - x) ** 3, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[self.schedule]
        return int(lowest + (highest - lowest) * share + 0.5)

    def problems(self, config: TaskConfig) -> list[str]:
        found = []
        if self.heating + self.cooling > 1:
            found.append(
                f"sa-fedlora.heating = {self.heating:g} and sa-fedlora.cooling = {self.cooling:g} are more than all "
                "rounds"
            )
        if self.initiating_rounds and config.rounds_of_head >= self.initiating_rounds:
            found.append(
                f"head-rounds = {config.head_rounds} and head-init = '{config.head_init}' leave none of "
                f"sa-fedlora.initiating-rounds = {self.initiating_rounds} to the whole model: set fewer, or "
                "sa-fedlora.initiating-rounds = 0"
            )
        return found

    @property
    def writes_base(self) -> bool:
        return bool(self.initiating_rounds) or self.remainder == "merge"

    @property
    def fixed_step(self) -> str:
        return "weights give way to factors, and these are split again when the rank falls"

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        """Return the adapters' initial values; if there are initiating rounds, all weights, with the adapters' values
        waiting on the server."""
        tensors = dict(model.trained)
        if not self.initiating_rounds:
            return State(snapshot(tensors))
        waiting = {WAITING + name: tensor for name, tensor in tensors.items()}
        return State(snapshot(model.frozen | non_lora(tensors)), server=snapshot(waiting))

    def assign(self, profiles: list[Profile], round: int, rounds: int, seed: int) -> dict[str, Assignment]:
        assignments = super().assign(profiles, round, rounds, seed)
        highest = max((assignment.rank for assignment in assignments.values()), default=0)
        if round == 0 or not highest:
            return assignments
        ceiling = 0 if self.initiates(round) else self.annealed(round, rounds, highest)
        return {
            name: replace(assignment, rank=min(assignment.rank, ceiling)) for name, assignment in assignments.items()
        }

    def begin(self, state: State, round: int, rank: int) -> State:
        """Return the state of a round: the hand-over, once, and the shrink to this round's rank."""
        if self.initiates(round):
            if not _waiting(state):
                raise RunFailed(
                    "the state that was handed over has no adapters for after the initiating rounds: set "
                    "sa-fedlora.initiating-rounds = 0 to continue with adapters, or resume the run from its checkpoint"
                )
            return state
        state = _handed_over(state, min(round - 1, self.initiating_rounds))  # a rolled-back run may be before it
        if not 0 < rank < state.rank:
            return state
        small = shrunk(state.tensors, rank)
        rest = remainder(state.tensors, small) if self.remainder == "merge" else {}
        return replace(state, tensors=small, journal=state.journal + ((Entry(round, 0, rest),) if rest else ()))

    def start_of(self, state: State, assignment: Assignment) -> State:
        return State(state.tensors) if _waiting(state) else super().start_of(state, assignment)

    # ------------------------------------------------------------------ the node's half

    def replay(self, model: TunedModel, entry: Entry) -> None:
        if self.initiates(entry.round):  # the hand-over, made by the last of them
            for name, tensor in entry.tensors.items():
                model.base_weight(name).copy_(tensor)
        else:
            merge_products(model, entry)

    def live(self, model: TunedModel, assignment: Assignment) -> dict[str, torch.Tensor]:
        return model.frozen | non_lora(model.trained) if self.initiates(assignment.round) else model.trained

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        if self.initiates(assignment.round):
            trainer = trainer.regularised(partial(proximal, mu=self.mu))
            if self.initiating_rate:
                trainer = trainer.at_rate(self.initiating_rate)
        return super().train(model, trainer, assignment)


def _waiting(state: State) -> Tensors:
    """Return what adapters will train, while initiating rounds train all weights; nothing after the hand-over."""
    return {n.removeprefix(WAITING): tensor for n, tensor in state.server.items() if n.startswith(WAITING)}


def _handed_over(state: State, round: int) -> State:
    """Return the state with a round's weights as the base and with the adapters' tensors; the head does not change."""
    waiting, weights = _waiting(state), state.tensors
    if not waiting:
        return state
    base = {name: tensor for name, tensor in weights.items() if name not in waiting}
    tensors = {name: weights.get(name, tensor) for name, tensor in waiting.items()}
    rest = {name: tensor for name, tensor in state.server.items() if not name.startswith(WAITING)}
    return replace(state, tensors=tensors, journal=(*state.journal, Entry(round, 0, base)), server=rest)


def shrunk(tensors: Tensors, rank: int) -> Tensors:
    """Return the tensors with every product B A as close as factors of this rank can be: B U S^(1/2), A S^(1/2) V^T."""
    small = dict(tensors)
    for module in modules(tensors):
        b, a = pair(tensors, module)
        left, right = ProductSum.of(b, a).split(rank, spare=a)
        root = torch.linalg.vector_norm(left, dim=0).sqrt()  # 0 if the product lacks this rank: only A is kept
        even = torch.where(root > 0, root, 1.0)
        b_name, a_name = factor_names(module)
        small |= {b_name: (left / even).to(b.dtype), a_name: (right * even[:, None]).to(a.dtype)}
    return small


def remainder(tensors: Tensors, small: Tensors) -> Tensors:
    """Return the products of `tensors` minus those of `small`, as a journal entry."""
    parts: Tensors = {}
    for module in modules(tensors):
        product = ProductSum.of(*pair(tensors, module))
        parts |= product.plus(-1.0, *pair(small, module)).parts(module, floor=FLOAT32 * product.norm())
    return parts
