"""Weights that a base lacks, and weights that the model does not use.

Libraries silently draw missing weights at random and skip unknown ones. Here only a head may be drawn.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from task.models.base import Base, BaseError
from task.models.heads import POOLER
from task.tunings.parts.trainable import inside

SHOWN = 4  # names in a message
SHARE = 3  # a prefix is tried if at least one weight in this many is under it
DEEP = 4  # the most parts of a name that a prefix may have
OTHERS = re.compile(  # pretraining heads, and buffers that old versions saved
    r"(cls|lm_head|embed_out|vocab_\w+|mlm|\w*predictions?|generator_\w+|classifier\w*|\w*_classifier|score|fc|head|"
    r"qa_outputs|decoder|mask_token|final_logits_bias|logits_proj|sequence_summary)(\.|$)|"
    r".*(position_ids|inv_freq|num_batches_tracked|masked_bias|attn\.bias|relative_position_index)$|.*pooler(\.|$)"
)
INSIDE = re.compile(r"\.(base_layer|lora_[AB]|modules_to_save|original_module)(\.|$)")


@dataclass(frozen=True)
class Report:
    """Names of the weights that a base's files lack, have in another shape, or have without use."""

    missing: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # by name: in the files, and in the model
    unused: tuple[str, ...]

    @classmethod
    def of(cls, loading: Mapping[str, Any]) -> "Report":
        """Return the report of a load, from transformers' loading info."""
        wrong = {name: (tuple(found), tuple(wanted)) for name, found, wanted in sorted(loading["mismatched_keys"])}
        return cls(tuple(sorted(loading["missing_keys"])), wrong, tuple(sorted(loading["unexpected_keys"])))

    @property
    def drawn(self) -> list[str]:
        """Return the weights that were drawn at random."""
        return [*self.missing, *self.misshapen]

    def lacking(self, head: Iterable[str]) -> list[str]:
        """Return the weights drawn at random that belong neither to a head nor to a pooler."""
        modules = list(head)
        return [name for name in self.drawn if not inside(name, modules) and not POOLER.search(name)]


def check_body(base: Base, report: Report, head: Iterable[str], stored: Iterable[str], pretrained: str) -> None:
    """Raise BaseError if weights of the body are missing or have another shape. `stored` are the names in the files;
    `pretrained` is the name of the task kind if it draws no head, else empty."""
    lacking = report.lacking(head)
    if not lacking:
        return
    missing = [name for name in lacking if name not in report.misshapen]
    shapes = [_difference(name, *report.misshapen[name]) for name in lacking if name in report.misshapen]
    problems = [f"its files lack {counted(missing)}"] if missing else []
    problems += [f"its weights do not have the shapes that its config.json says: {counted(shapes)}"] if shapes else []
    raise BaseError(
        f"model.name = '{base.name}': {'; '.join(problems)}. {_cure(list(stored), pretrained)}",
        f"the base lacks {len(missing)} weights, and {len(shapes)} have another shape than its config.json says",
    )


def unused(report: Report) -> str:
    """Return a sentence on weights in the files that are not used; empty if they are only heads of another kind."""
    left = [name for name in report.unused if not OTHERS.match(name)]
    return f"the base's files have weights that this model does not use: {counted(left)}" if left else ""


def prefixes(stored: Iterable[str]) -> list[str]:
    """Return common prefixes of weight names, shortest first: a model may be saved inside another module."""
    names = list(stored)
    counts = Counter(
        ".".join(parts[:depth]) + "."
        for parts in (name.split(".") for name in names)
        for depth in range(1, min(DEEP, len(parts)))
    )
    return sorted(
        (prefix for prefix, count in counts.items() if count * SHARE >= len(names)), key=lambda p: (len(p), p)
    )


def counted(names: list[str]) -> str:
    """Return the first few names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _cure(stored: list[str], pretrained: str) -> str:
    """Return what to do. The names often show that a model was saved inside another one."""
    if any(INSIDE.search(name) for name in stored):
        return "They are weights of a peft model with its adapter inside: merge_and_unload() it, and save that"
    if pretrained:
        return f"task.kind = '{pretrained}' needs a model that was pretrained as one, with all its weights"
    first = stored[0].split(".")[0]
    if all(name.startswith(first + ".") for name in stored):
        return f"All weights there are named '{first}. ...'; save the pretrained model itself, with save_pretrained()"
    return "Only a head may be drawn at random: the files must have all weights of the model that config.json describes"


def _difference(name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    sizes = [" x ".join(map(str, shape)) or "one number" for shape in (stored, wanted)]
    return f"{name} ({sizes[0]}, not {sizes[1]})"
