"""FedKSeed: full-parameter tuning without gradients; one scalar for each of K seeded directions is exchanged.

Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
Kilobytes", arXiv 2312.06353 (ICML 2024). All nodes share K directions z_1 .. z_K. In every local step a node draws one
direction and a batch, and moves along the direction by the slope of the loss:

    g = (L(w + eps z_k) - L(w - eps z_k)) / (2 eps),     w <- w - eta g z_k,     a_k <- a_k - eta g

The server averages the totals a (K,), and w = w_0 + sum_k a_k z_k holds at any time, for anyone who has the base. With
`pro`, directions are drawn with probabilities softmax(s), where s is the mean |g| seen along each, scaled to [0, 1];
directions that were never drawn count as the mean.

Differences from the paper: learning rates are inside a, so that they may change. z_k is not normal but, by `basis`,
made of signs (hadamard) or of scaled truncated normals, both with E z z^T = I; with the first, w is rebuilt in O(d log
d). Totals are sent to nodes as 16-bit integers with a scale, so that w has the same bits everywhere. The optimiser is
plain SGD. With `pro`, the mean |g| weighs every slope by its node's rows, and none is clipped; in the published code
all slopes weigh the same, each is cut at 1,000, and the mean includes a zero that every direction starts with. A node
needs no gradients or optimiser state, but two float32 copies of the model: the base, and the weights that it moves
from.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from strategies.algebra.directions import Directions
from strategies.algebra.layout import Layout
from strategies.algebra.projection import BASES, from_exact
from strategies.algebra.tensors import Tensors, norm
from strategies.exchange.strategy import EQUAL_RANKS, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Metrics, State, Update
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.seeds import derive
from task.training.trainer import Trainer

TOTALS, AMPLITUDES, DRAWS = "totals", "amplitudes", "draws"
NUMBERS, SCALE, CHANCES = "numbers", "scale", "chances"  # keys of what nodes are sent
TINY = 1e-300


@dataclass(frozen=True)
class FedKSeed(Strategy):
    """Federated averaging of totals along seeded directions."""

    directions: int = option(
        4096, low=1, high=2**24, doc="seeded directions that the model can move in; one scalar each is exchanged"
    )
    block: int = option(65536, low=256, high=2**26, doc="elements that have a direction together; a power of two")
    basis: str = option(
        "hadamard", choices=tuple(sorted(BASES)), doc="of the directions: hadamard (signs, fast), truncated-normal"
    )
    epsilon: float = option(0.0005, low=1e-9, doc="how far aside the loss is looked at")
    pro: bool = option(False, doc="draw directions by how steep the loss was along them")

    needs_in_place = True
    exchanges_tensors = False
    gradients = False
    laws = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS})

    def problems(self, config: TaskConfig) -> list[str]:
        found = []
        if self.block & (self.block - 1):
            found.append(f"fedkseed.block = {self.block} is not a power of two")
        if self.directions > self.block:
            found.append(f"fedkseed.directions = {self.directions} are more than fedkseed.block = {self.block}")
        if config.optimizer != "sgd" or config.momentum or config.weight_decay or config.max_grad_norm:
            found.append(
                "strategy = 'fedkseed' has no gradients: set optimizer = 'sgd', without momentum, decay or clipping"
            )
        if config.precision != "model":
            found.append("strategy = 'fedkseed' takes differences of losses, which precision rounds: set it to 'model'")
        if config.gradient_checkpointing:
            found.append("strategy = 'fedkseed' has no gradients: set gradient-checkpointing = false")
        return found

    def apart(self, config: TaskConfig) -> str:
        if 0 < config.local_steps < self.directions:
            return (
                f"in local-steps = {config.local_steps} a node tries few of fedkseed.directions = {self.directions}, "
                "and others than the other nodes: set fewer directions than local steps"
            )
        return ""

    @property
    def fixed_step(self) -> str:
        return "fedkseed.pro = true also counts slopes and draws, not only totals" if self.pro else ""

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        names = (TOTALS, AMPLITUDES, DRAWS) if self.pro else (TOTALS,)
        return State({name: torch.zeros(self.directions, dtype=torch.float64) for name in names})

    def start_of(self, state: State, assignment: Assignment) -> State:
        """Return the totals as integers, and the probability of each direction."""
        row = from_exact(state.tensors[TOTALS], torch.tensor([self.directions]))
        start = {NUMBERS: row.numbers, SCALE: row.scales}
        return State(start | ({CHANCES: _chances(state)} if self.pro else {}))

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        return {name: tensor.float() for name, tensor in state.tensors.items()}

    def length(self, delta: Tensors) -> float:
        """Return the norm of the totals; everything else that is sent only affects which directions are drawn."""
        return super().length({TOTALS: delta[TOTALS]})

    def shortened(self, delta: Tensors, share: float) -> Tensors:
        return delta | super().shortened({TOTALS: delta[TOTALS]}, share)

    def lengths(self, state: State, update: Update) -> dict[str, float]:
        """Return the roots of the norms.

        A step is one random direction, and its slope may be ten times the usual, like the largest of many normal
        numbers. One factor for the norms themselves would refuse honest updates of few steps.
        """
        return {f"root of the norm of {name}": math.sqrt(norm([delta])) for name, delta in update.delta.items()}

    # ------------------------------------------------------------------ the node's half

    def install(self, model: TunedModel, start: State) -> None:
        model.reset(model.trained)
        model.replay_state = {CHANCES: start.tensors[CHANCES]} if self.pro else {}
        directions = self._directions(model)
        base = {name: model.base_weight(name) for name in model.trained}
        numbers, scale = (start.tensors[name].to(model.device) for name in (NUMBERS, SCALE))
        for blocks in directions.layout.groups():
            rebuilt = directions.layout.read(base, blocks) + directions.combined(numbers, scale, blocks)
            directions.layout.write(model.trained, blocks, rebuilt)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        walk = _Walk(model, self._directions(model))
        random = np.random.default_rng(assignment.seed)
        chances = model.replay_state[CHANCES].double().numpy() if self.pro else np.ones(self.directions)
        names = (TOTALS, AMPLITUDES, DRAWS) if self.pro else (TOTALS,)
        sums = {name: torch.zeros(self.directions, dtype=torch.float64) for name in names}
        losses = []
        for loss in trainer.losses(model):
            k = int(random.choice(self.directions, p=chances / chances.sum()))
            ahead, behind = walk.loss_at(k, self.epsilon, loss), walk.loss_at(k, -self.epsilon, loss)
            slope = (ahead - behind) / (2 * self.epsilon)
            walk.go(k, -trainer.config.learning_rate * slope)
            learned = {TOTALS: -trainer.config.learning_rate * slope, AMPLITUDES: abs(slope), DRAWS: 1.0}
            for name in names:
                sums[name][k] += learned[name]
            losses.append((ahead + behind) / 2)
        metrics: Metrics = {"train-loss": sum(losses) / len(losses), "steps": len(losses)}
        return {name: total.float() for name, total in sums.items()}, metrics

    def _directions(self, model: TunedModel) -> Directions:
        layout = Layout.of(model.trained, self.block, even=True)
        return Directions(layout, self.basis, self.directions, derive(model.config.seed, "directions"))


class _Walk:
    """A model that moves along directions. Its position is kept in float32, so nothing is lost on the way."""

    def __init__(self, model: TunedModel, directions: Directions) -> None:
        self._live, self._directions = model.trained, directions
        self._centre = {name: tensor.detach().float().clone() for name, tensor in model.trained.items()}

    def loss_at(self, index: int, distance: float, loss: Callable[[], float]) -> float:
        """Return the loss one step aside along a direction."""
        self._move(self._live, index, distance)
        return loss()

    def go(self, index: int, distance: float) -> None:
        """Move the model to this position."""
        self._move(self._centre, index, distance)

    def _move(self, target: Mapping[str, torch.Tensor], index: int, distance: float) -> None:
        layout = self._directions.layout
        for blocks in layout.groups():
            centre = layout.read(self._centre, blocks)
            layout.write(target, blocks, centre + distance * self._directions.one(index, blocks, centre.device))


def _chances(state: State) -> torch.Tensor:
    """Return the probability of drawing each direction (K,), float32."""
    drawn = state.tensors[DRAWS] > 0
    if not drawn.any():
        return torch.full(drawn.shape, 1 / len(drawn))
    mean = torch.where(drawn, state.tensors[AMPLITUDES] / state.tensors[DRAWS].clamp(min=TINY), 0.0)
    mean = torch.where(drawn, mean, mean[drawn].mean())
    spread = mean.max() - mean.min()
    return torch.softmax((mean - mean.min()) / spread if spread else torch.zeros_like(mean), 0).float()
