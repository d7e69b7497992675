"""(IA)^3: factors on keys, values and the inner activations of feed-forward layers, by peft."""

from dataclasses import dataclass

from torch import nn

from task.schema import option
from task.tunings.base import Head, TaskKind, Tuning, TuningError
from task.tunings.parts.trainable import chosen, ends, linear_layers

# Names in transformers. If one layer computes queries, keys and values, its whole output is scaled.
ATTENTION = ("k_proj", "v_proj", "key_proj", "value_proj", "key", "value", "k_lin", "v_lin", "k", "v",
             "query_key_value", "c_attn", "Wqkv")  # fmt: skip
INNER = ("fc2", "down_proj", "lin2", "output.dense", "DenseReluDense.wo", "dense_4h_to_h", "w2", "mlp.c_proj",
         "ffn_output", "mlp.Wo")  # fmt: skip
OUTER = ("attention.output.dense",)  # BERT names the last layer of attention like the last feed-forward layer


@dataclass(frozen=True)
class Ia3(Tuning):
    """(IA)^3 (Liu et al., arXiv 2205.05638, section 3.3): k -> l_k * k, v -> l_v * v, and in a feed-forward layer
    gamma(W_1 x) -> l_ff * gamma(W_1 x). Each l is a vector of ones at the start, so the model is the base."""

    on_linear_layers = True
    usual_adamw = (1e-4, 1e-1)
    usual_sgd = (1e-3, 1e2)

    attention: tuple[str, ...] = option(
        ("auto",),
        doc="module name endings of the layers whose output is scaled; auto: keys and values, as commonly named",
    )
    feedforward: tuple[str, ...] = option(
        ("auto",), doc="of those whose input is scaled; auto: the last layer of each feed-forward network"
    )

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        from peft import IA3Config, get_peft_model

        linear = linear_layers(module, head, "ia3")
        outputs = _layers(linear, self.attention, ATTENTION, "ia3.attention")
        inputs = _layers(linear, self.feedforward, INNER, "ia3.feedforward")
        return get_peft_model(  # type: ignore[no-any-return]
            module,
            IA3Config(
                target_modules=[*outputs, *inputs],
                feedforward_modules=inputs,
                modules_to_save=head.trained,
            ),
        )


def _layers(linear: list[str], said: tuple[str, ...], known: tuple[str, ...], option: str) -> list[str]:
    if said != ("auto",):
        return chosen(linear, said, option)
    found = [n for n in linear if any(ends(n, e) for e in known) and not any(ends(n, e) for e in OUTER)]
    if not found:
        there = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise TuningError(
            f"tuning = 'ia3' does not know this model's layers; name them in {option}, of {there}, or use 'lora'"
        )
    return found
