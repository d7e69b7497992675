"""Head rounds: in the first rounds of a run a classifier's head changes alone, whatever the strategy.

A new head sends large and misleading gradients into a pretrained body. So it is fitted first, on features that do not
change: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv
2202.10054 (LP-FT). In these rounds the state has the head's tensors alone, and every strategy does with them what it
always does. All other tensors rest on the server, among those that only the server has. They are as the model was
built, so no message needs them: a node resets its own. After the last head round they come back.

With `head-init` = "ncm" the first of these rounds makes the head from class means: Legate et al., "Guiding The Last
Layer in Federated Learning with Pre-Trained Models", arXiv 2306.03937 (FedNCM). With x the features of a row (the input
of the layer that computes the classes) and y its label, node i of n_i rows answers

    S_i = (1 / n_i) sum onehot(y) x^T  (classes x d),     c_i = (1 / n_i) sum onehot(y)  (classes,)

in place of a change of that layer's weight and bias. Their means weighted by rows are S and c of all rows together,
however these are split: the class means are mu_k = S_k / c_k, exactly. The head becomes w_k = t mu_k, b_k = -t
||mu_k||^2 / 2, whose largest logit is that of the nearest mean. The scale t is our choice, because training goes on
from the head's logits: t ||mu_k - mu_l||^2 / 2, the margin between two classes at the mean of one, is MARGIN nats in
the mean over pairs. A class without rows gets the mean of all rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.types import RunFailed, State, Update
from strategies.exchange.wrapper import Wrapper
from task.config import CLASS_MEANS, TaskConfig
from task.features.class_means import class_layer, class_means
from task.models.model import TunedModel
from task.training.batches import Unsuited
from task.training.trainer import Trainer

RESTING = "resting "  # prefix of names on the server
MARGIN = 4.0  # nats; of 1, 2, 4, 8 the least test loss on AG News (MiniLM) and on MNIST (a small ViT)
NEAR = 1e-3  # of one: what the shares of all classes add up to


def problems(strategy: Algorithm, wrappers: Sequence[Wrapper], config: TaskConfig) -> list[str]:
    """Return why the head cannot change alone, train at a rate of its own, or begin with class means."""
    found, name = [], strategy.name
    if config.rounds_of_head and not strategy.exchanges_tensors:
        found.append(
            f"strategy = '{name}' exchanges no tensors of the model, so it cannot send the head alone: leave out "
            "head-rounds and head-init"
        )
    if config.head_rate not in (0, 1) and not strategy.gradients:
        found.append(f"strategy = '{name}' moves all tensors by the same steps, without gradients: set head-rate = 0")
    for wrapper in wrappers if config.head_init == CLASS_MEANS else ():
        if wrapper.privacy:
            why = "the number of rows of every class leaves the node as it is, which privacy forbids"
        elif wrapper.encodes or wrapper.combines or type(wrapper).admitted is not Wrapper.admitted:
            why = "class sums and counts are exact only as they are"
        else:
            continue
        found.append(f"head-init = 'ncm' does not fit wrapper '{wrapper.name}': {why}; set head-init = 'base'")
    return found


def too_few(config: TaskConfig, rounds: int) -> list[str]:
    """Return the problem of a run that ends before anything but the head trains."""
    if not config.rounds_of_head or config.rounds_of_head < rounds:
        return []
    return [
        f"head-rounds = {config.head_rounds} and head-init = '{config.head_init}' leave none of num-server-rounds = "
        f"{rounds} to the rest of the model: set fewer, or tuning = 'head'"
    ]


# ---------------------------------------------------------------------- the state
def initial(strategy: Algorithm, model: TunedModel, config: TaskConfig) -> State:
    """Return the state before round 1; if there are head rounds, with the head's tensors alone. Raises RunFailed if the
    strategy does not exchange them, or if the head cannot be made of class means."""
    state = strategy.initial(model)
    if not config.rounds_of_head:
        return state
    state = _rested(state, model.head)
    if config.head_init == CLASS_MEANS:
        try:
            class_layer(state.tensors, len(config.data.labels))
        except Unsuited as error:
            raise RunFailed(str(error)) from error
    return state


def whole(state: State) -> State:
    """Return the state with all its tensors; the same state if none rest."""
    resting = {name: tensor for name, tensor in state.server.items() if name.startswith(RESTING)}
    if not resting:
        return state
    back = {name.removeprefix(RESTING): tensor for name, tensor in resting.items()}
    server = {name: tensor for name, tensor in state.server.items() if name not in resting}
    return replace(state, tensors=back | state.tensors, server=server)


def begun(state: State, config: TaskConfig, round: int) -> State:
    """Return the state that a round begins with: whole after the last head round."""
    return state if round <= config.rounds_of_head else whole(state)


def _rested(state: State, head: Iterable[str]) -> State:
    """Return the state in which only the tensors of the `head` take part. Raises RunFailed if it lacks one."""
    names = set(head)
    if missing := sorted(names - state.tensors.keys()):
        raise RunFailed(f"head-rounds: the strategy does not exchange '{missing[0]}' of the head; set head-rounds = 0")
    resting = {RESTING + name: tensor for name, tensor in state.tensors.items() if name not in names}
    own = {name: tensor for name, tensor in state.tensors.items() if name in names}
    return replace(state, tensors=own, server=state.server | resting)


# ---------------------------------------------------------------------- class means
def makes_head(config: TaskConfig, round: int) -> bool:
    """Return whether this round makes the head from class means."""
    return round == 1 and config.head_init == CLASS_MEANS


def class_statistics(model: TunedModel, trainer: Trainer) -> Tensors:
    """On the node: return S_i and c_i under the names, and in the dtypes, of the layer that computes the classes, and
    zero for other tensors of the head. Raises Unsuited."""
    head = {name: tensor for name, tensor in model.trained.items() if name in model.head}
    weight, bias = class_layer(head, len(trainer.rows.names))
    means, shares = class_means(model, weight, trainer)
    rest = {name: torch.zeros_like(tensor, device="cpu").detach() for name, tensor in head.items()}
    return rest | {weight: means.to(head[weight].dtype), bias: shares.to(head[bias].dtype)}


def refusal(config: TaskConfig, update: Update) -> str:
    """On the server: return why an answer has no shares of classes; empty if it has, or is not asked for them."""
    if not makes_head(config, update.assignment.round):
        return ""
    _, bias = class_layer(update.delta, len(config.data.labels))
    shares = update.delta[bias].double()
    if bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > NEAR:
        return "the shares of its classes are not numbers from 0 that add up to 1"
    return ""


def changed(config: TaskConfig, state: State, means: Tensors) -> Tensors:
    """On the server: return the change of the state's head to that of the class means, given S and c."""
    if not means:
        return means
    weight, bias = class_layer(state.tensors, len(config.data.labels))
    head = dict(zip((weight, bias), of_means(means[weight].double(), means[bias].double()), strict=True))
    return means | {name: (made - state.tensors[name].double()).to(means[name].dtype) for name, made in head.items()}


def of_means(sums: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (classes, d) and the bias (classes,) of the head of class means, in float64; `sums` are S,
    `shares` c. Without two different means the weight and the bias are zero."""
    there = shares > 0
    means = torch.where(there[:, None], sums / torch.where(there, shares, 1.0)[:, None], sums.sum(0) / shares.sum())
    known = means[there]
    pairs = len(known) * (len(known) - 1)
    apart = float(torch.cdist(known, known).square().sum()) / pairs if pairs else 0.0
    scale = 2 * MARGIN / apart if apart else 0.0
    return scale * means, -scale / 2 * means.square().sum(1)
