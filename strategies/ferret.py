"""Ferret: full-parameter tuning that sends a few thousand integers.

Shu, Hu, Ng, Low, Yu, "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", arXiv 2409.06277
(ICML 2025). Each node trains with the task's own optimiser from w_{r-1} to w_r^(i), and sends the coordinates gamma^(i)
of the change in a random basis that is drawn from its seed s^(i), block by block, K_l in proportion to the block's norm
(Eqs. 6 to 8). Every node rebuilds the same update from coordinates and seeds and adds it to the same weights:

    w_r = w_{r-1} + eta_r sum_i p_i sum_k gamma_k^(i) v_k^(i),     p_i = n_i / n

(The paper subtracts, as its Delta is w_{r-1} - w_r^(i), and its mean is uniform.) The scale is the unbiased 1/(rho K);
`scale` = code uses the published code's d/K, about a third, but not its clip of each seed's block to norm 10.

Differences from the paper: `basis` = hadamard has the same number of coordinates and the same error, but costs O(d log
d) instead of O(d K) (`strategies/algebra/hadamard.py`). Coordinates are 16-bit integers with a scale per block, so a
rebuilt model has the same bits on every machine. Blocks have one size, whatever the tensors. The step may follow a
schedule. With `momentum` m, the added step is u_r = m u_{r-1} + the sum above. `seeds` = fresh gives every node and
round its own vectors, as in the paper (with hadamard, the signs are common to a round). `seeds` = shared gives all
nodes of a round the same vectors, so their coordinates become one row. `seeds` = pool keeps one basis for the whole run
(the published code keeps a pool): the state is then the sum of all coordinates and never grows, but the model only ever
moves in these K directions, and K_l is proportional to lengths, not norms.

A journal entry holds a row for each node, ordered by name, times p_i and the step, on scales that all rows share. The
changed weights are kept in float32 or wider, whatever the model's dtype; a node's change is measured from the values
that its model could represent.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import (
    BASES,
    Coordinates,
    Projection,
    from_exact,
    most_counts,
    spread_out,
    summed,
    weighted,
)
from strategies.algebra.robust import Settle
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import FIXED_POINT, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import Assignment, Entry, Metrics, Profile, RunFailed, State, Update
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.seeds import derive
from task.storage.paging import paged_out
from task.training.trainer import Trainer

SCHEDULES = ("constant", "linear", "cosine")
ROW = NUMBERS, COUNTS, SCALES = "numbers", "counts", "scales"
SEEDS = "seeds"  # of the rows of an entry
LENGTHS = "lengths"  # of blocks: the largest number of coordinates in each
EXACT = "exact"  # coordinates of a pool; nodes are sent integers
VELOCITY = "velocity"  # of a pool; only the server has it


@dataclass(frozen=True)
class Ferret(Strategy):
    """Coordinates in seeded bases, and a journal of them."""

    coordinates: int = option(4096, low=1, high=2**26, doc="16-bit integers that a node sends in a round")
    block: int = option(65536, low=256, high=2**26, doc="elements that are projected together; a power of two")
    basis: str = option(
        "hadamard",
        choices=tuple(sorted(BASES)),
        doc="of the random directions: hadamard (fast), truncated-normal (the paper's)",
    )
    scale: str = option(
        "paper",
        choices=("paper", "code"),
        doc="of a rebuilt update: paper (unbiased) or code (the published code's, for truncated-normal)",
    )
    seeds: str = option(
        "fresh",
        choices=("fresh", "shared", "pool"),
        doc="a basis for every node and round (fresh), for every round (shared), for the run (pool)",
    )
    step: float = option(1.0, low=0.0, doc="the server's step in the first round")
    schedule: str = option("constant", choices=SCHEDULES, doc="how it goes on: constant, linear, cosine")
    final_step: float = option(0.0, low=0.0, doc="the server's step in the last round, where it is not constant")
    momentum: float = option(0.0, low=0.0, high=0.999, doc="of the server")

    needs_in_place = writes_base = True
    is_weighted_mean = exchanges_tensors = False
    has_combine_by = True
    additive_across_rounds = False  # coordinates belong to the bases, and the scales, of one round
    laws = frozenset({FIXED_POINT, ORDER, WEIGHTS})

    def problems(self, config: TaskConfig) -> list[str]:
        found = []
        if self.block & (self.block - 1):
            found.append(f"ferret.block = {self.block} is not a power of two")
        if self.scale == "code" and self.basis != "truncated-normal":
            found.append("ferret.scale = 'code' needs ferret.basis = 'truncated-normal'")
        return found

    @property
    def fixed_step(self) -> str:
        return (
            "it combines coordinates in random bases, which have their own step and momentum "
            "(ferret.step, ferret.momentum)"
        )

    def stepped(self, assignment: Assignment) -> float:
        """Return the server's step eta_r: from `step` in the first round to `final-step` in the last, by the
        schedule."""
        x = (assignment.round - 1) / (assignment.rounds - 1) if assignment.rounds > 1 else 0.0
        share = {"constant": 1.0, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[self.schedule]
        return self.final_step + (self.step - self.final_step) * share

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        """Return an example of an update; with a pool, the sum of all updates so far. Raises RunFailed if options do
        not fit the model."""
        try:
            projection = self._projection(model.trained)
        except ValueError as error:
            raise RunFailed(f"ferret.coordinates, ferret.block: {error}") from error
        nothing = torch.zeros(projection.total, dtype=torch.float64)
        counts = torch.from_numpy(projection.counts())
        if self._pooled:
            return State({EXACT: nothing, COUNTS: counts}, server={VELOCITY: nothing})
        lengths = torch.tensor(projection.layout.lengths, dtype=torch.int32)
        return State(_row(from_exact(nothing, counts)) | {LENGTHS: lengths})

    def assign(self, profiles: list[Profile], round: int, rounds: int, seed: int) -> dict[str, Assignment]:
        assignments = super().assign(profiles, round, rounds, seed)
        return {
            name: replace(assignment, basis=derive(seed, "basis", round)) for name, assignment in assignments.items()
        }

    def start_of(self, state: State, assignment: Assignment) -> State:
        if self._pooled:
            return State(_row(from_exact(state.tensors[EXACT], state.tensors[COUNTS])))
        return State({}, state.journal)

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        return self.start_of(state, assignment).tensors or {name: state.tensors[name] for name in ROW}

    def refusal(self, state: State, update: Update) -> str:
        given, total = _coordinates(update.delta), len(update.delta[NUMBERS])
        if bool((given.scales < 0).any()):
            return f"'{SCALES}' holds a negative number"
        if self._pooled and not torch.equal(given.counts, state.tensors[COUNTS]):
            return f"'{COUNTS}' do not match the pool"
        if bool((given.counts < 1).any()) or int(given.counts.sum(dtype=torch.int64)) != total:
            return f"'{COUNTS}' do not share out {total} coordinates"
        if not self._pooled and bool((given.counts > state.tensors[LENGTHS]).any()):
            return f"'{COUNTS}' give a block more coordinates than it has elements"
        return ""

    def length(self, delta: Tensors) -> float:
        """Return the norm of the coordinates times their scales."""
        return float(_coordinates(delta).exact().norm())

    def shortened(self, delta: Tensors, share: float) -> Tensors:
        return delta | super().shortened({SCALES: delta[SCALES]}, share)

    def apart(self, config: TaskConfig) -> str:
        if self.seeds == "fresh":
            return "with ferret.seeds = 'fresh' every node has a basis of its own: set it 'shared' or 'pool'"
        return ""

    def lengths(self, state: State, update: Update) -> dict[str, float]:
        return {"norm": self.length(update.delta)}

    def comparable(self, state: State, update: Update) -> Tensors:
        """Return the numbers only for a pool: otherwise nodes have different vectors, or different numbers of them in a
        block."""
        return {EXACT: _coordinates(update.delta).exact()} if self._pooled else {}

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        cohort = sorted(updates, key=lambda update: update.node)
        total, step = sum(update.weight for update in cohort), self.stepped(cohort[0].assignment)
        rows = [_coordinates(update.delta) for update in cohort]
        weights = [step * update.weight / total for update in cohort]
        if self.seeds != "fresh":
            return self._one(summed(rows, weights), cohort[0].assignment)
        return _entered(weighted(rows, weights), [self._seeds(update.assignment) for update in cohort])

    def combine_by(self, settle: Settle, state: State, updates: Iterable[Update]) -> Tensors:
        """Combine every coordinate of the shared basis by `settle`. A node that has fewer coordinates in a block counts
        as zero in the others, as in its vector."""
        cohort = list(updates)
        rows, assignment = [_coordinates(update.delta) for update in cohort], cohort[0].assignment
        counts = most_counts(rows)
        like = {EXACT: torch.empty(int(counts.sum()), dtype=torch.float64, device="meta")}
        found = settle(like, ({EXACT: spread_out(row, counts)} for row in rows)).over_owners(like)
        return self._one(from_exact(self.stepped(assignment) * found[EXACT], counts), assignment)

    def _one(self, row: Coordinates, assignment: Assignment) -> Tensors:
        """Return the one row that a cohort's rows combine to in a shared basis."""
        return {EXACT: row.exact()} if self._pooled else _entered([row], [self._seeds(assignment)])

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        if not self._pooled:
            return replace(state, journal=(*state.journal, Entry(round, 0, combined)))
        before = state.server.get(VELOCITY, torch.zeros_like(combined[EXACT]))  # none comes with initial arrays
        velocity = self.momentum * before + combined[EXACT]
        exact = state.tensors | {EXACT: state.tensors[EXACT] + velocity}
        return replace(state, tensors=exact, server=state.server | {VELOCITY: velocity})

    # ------------------------------------------------------------------ the node's half

    def install(self, model: TunedModel, start: State) -> None:
        model.reset(model.trained)
        if self._pooled:
            self._add(model.trained, [_coordinates(start.tensors)], [_pool(model.config)], model)

    def replay(self, model: TunedModel, entry: Entry) -> None:
        given = entry.tensors
        rows = [Coordinates(*row, given[SCALES]) for row in zip(given[NUMBERS], given[COUNTS], strict=True)]
        seeds = [Seeds(common, own) for common, own in given[SEEDS].tolist()]
        self._add({name: model.base_weight(name) for name in model.trained}, rows, seeds, model)

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        before = paged_out(model.trained) if self._pooled else {n: model.base_weight(n) for n in model.trained}
        seeds = _pool(model.config) if self._pooled else self._seeds(assignment)
        counts = self._projection(before).counts() if self._pooled else None
        metrics = trainer.fit(model)
        return _row(self._projection(before).project(model.trained, before, seeds, counts)), metrics

    # ------------------------------------------------------------------ both halves

    @property
    def _pooled(self) -> bool:
        return self.seeds == "pool"

    def _seeds(self, assignment: Assignment) -> Seeds:
        """Return the projection on a node's basis in the assignment's round."""
        return Seeds(assignment.basis, assignment.basis if self.seeds == "shared" else derive(assignment.seed, "basis"))

    def _projection(self, tensors: Mapping[str, torch.Tensor]) -> Projection:
        return Projection(Layout.of(tensors, self.block), self.basis, self.coordinates, self.scale == "code")

    def _add(self, tensors: Tensors, rows: list[Coordinates], seeds: list[Seeds], model: TunedModel) -> None:
        """Add the vectors that coordinates and their seeds stand for, block by block. Every sum is rounded on its
        own."""
        projection = self._projection(tensors)
        layout = projection.layout
        for blocks in layout.groups():
            before = layout.read(tensors, blocks)
            change = projection.rebuilt(rows, seeds, blocks, before.device)
            if self.momentum and not self._pooled:
                model.replay_state = model.replay_state or {
                    name: torch.zeros_like(tensor) for name, tensor in tensors.items()
                }
                change = change + layout.read(model.replay_state, blocks) * self.momentum
                layout.write(model.replay_state, blocks, change)
            layout.write(tensors, blocks, before + change)


def _entered(rows: list[Coordinates], seeds: list[Seeds]) -> Tensors:
    """Return rows of the same scales as the journal stores them."""
    stacked = {name: torch.stack([_row(row)[name] for row in rows]) for name in (NUMBERS, COUNTS)}
    return stacked | {SCALES: rows[0].scales, SEEDS: torch.tensor(seeds, dtype=torch.int64)}


def _pool(config: TaskConfig) -> Seeds:
    """Return the seed of a run's one basis."""
    return Seeds(derive(config.seed, "basis"), derive(config.seed, "basis"))


def _row(given: Coordinates) -> Tensors:
    """Return coordinates as they travel."""
    return dict(zip(ROW, (given.numbers, given.counts, given.scales), strict=True))


def _coordinates(tensors: Mapping[str, torch.Tensor]) -> Coordinates:
    return Coordinates(*(tensors[name] for name in ROW))
