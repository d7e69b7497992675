"""What a configuration chooses, in words: the first lines of `thistledown check`."""

from collections.abc import Iterator

from server_app.config import RunConfig
from strategies.exchange import compatibility
from strategies.exchange.strategy import Strategy
from strategies.rounds.handshake.ranks import MEMORY_SHARE, TIME_SHARE
from task.config import TaskConfig
from task.schema import Flat, flatten
from task.tunings.base import AUTO


def choices(run: RunConfig) -> Iterator[str]:
    """Yield lines on what the settings choose."""
    strategy = run.strategy
    yield f"strategy  {_with_options(strategy.name, flatten(strategy))}"
    for wrapper in strategy.wrappers:
        yield f"wrapper   {_with_options(wrapper.name, flatten(wrapper))}"
    yield f"step      {_step(strategy)}"
    if promise := compatibility.mechanism(strategy, run.plan()).promise():
        yield f"privacy   {promise}"
    task = run.task
    yield f"tuning    {_with_options(task.tuning.name, flatten(task.tuning))}"
    if not task.tuning.budgets():
        yield from _automatic(task)
    length = f"{task.local_steps} steps" if task.local_steps else f"{task.local_epochs} epochs"
    cooled = f" to {task.learning_rate_min:g}" if task.learning_rate_min else ""
    warm = f" after {task.warmup_rounds} rounds of warm-up" if task.warmup_rounds else ""
    rate = f"{task.optimizer}, learning rate {task.learning_rate:g}{warm}{cooled}"
    at_once = f", {task.rows_at_once} in memory at a time" if task.rows_at_once < task.batch_size else ""
    yield f"training  {length} of {task.batch_size} rows a round{at_once}, {rate}"
    if task.precision != "model":
        where = "where a device has it and steps are faster" if task.precision == "auto" else "everywhere"
        yield f"precision products in bfloat16 {where}; parameters, gradients and optimizer as they are"
    if task.gradient_checkpointing:
        yield "memory    gradient checkpointing: blocks keep their inputs, and are computed twice"
    if task.model.quantized:
        yield f"base      frozen linear layers in {_precision(task)}, unless a node chooses otherwise"


def _precision(task: TaskConfig) -> str:
    """Describe how the base is quantised."""
    if task.model.quantization == "8bit":
        return "8 bits (LLM.int8)"
    double = ", double quantisation" if task.model.double_quantization else ""
    return f"4 bits (NF4{double}), computed in {task.model.computes_in}"


def _step(strategy: Strategy) -> str:
    """Describe the server optimizer."""
    optimizer = strategy.server_optimizer
    if optimizer is None:
        return "the combined update itself (server-optimizer sgd, learning-rate 1)"
    return f"{_with_options(optimizer.name, flatten(optimizer))}, on the server, of the combined update"


def _automatic(task: TaskConfig) -> Iterator[str]:
    first, *_, last = (*task.tuning.candidates()[:1], *task.tuning.candidates())
    fits = f"{MEMORY_SHARE:.0%} of its free memory and {TIME_SHARE:.0%} of round-timeout"
    yield f"ranks     {AUTO}: a node trains a few steps at ranks {first} and {last}, and gets the largest"
    yield f"          of lora.auto-ranks that fits {fits}; what follows is for rank {last}"


def _with_options(name: str, options: Flat) -> str:
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({said})" if said else name
