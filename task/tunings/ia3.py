"""(IA)^3: factors on keys, values and the inner activations of feed-forward layers, by peft."""

from torch import nn

from task.config import TaskConfig
from task.tunings.trainable import Head, TuningError, chosen, ends, linear_layers

# What transformers calls them. Where one layer makes queries, keys and values, all of its output is scaled.
ATTENTION = ("k_proj", "v_proj", "key_proj", "value_proj", "key", "value", "k_lin", "v_lin", "k", "v",
             "query_key_value", "c_attn", "Wqkv")  # fmt: skip
INNER = ("fc2", "down_proj", "lin2", "output.dense", "DenseReluDense.wo", "dense_4h_to_h", "w2", "mlp.c_proj",
         "ffn_output", "mlp.Wo")  # fmt: skip
OUTER = ("attention.output.dense",)  # BERT calls the end of attention like the end of its feed-forward layers


def ia3(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """(IA)^3 (Liu et al., arXiv 2205.05638, section 3.3): k -> l_k * k, v -> l_v * v, and in a feed-forward layer
    gamma(W_1 x) -> l_ff * gamma(W_1 x), each l a vector.

    `ia3.attention` names the layers whose output is scaled, `ia3.feedforward` those whose input is; `auto` knows the
    common names. Factors of one: the model is the base. Saved as a peft folder.
    """
    from peft import IA3Config, get_peft_model

    linear = linear_layers(module, head, "ia3")
    outputs = _layers(linear, config.ia3.attention, ATTENTION, "ia3.attention")
    inputs = _layers(linear, config.ia3.feedforward, INNER, "ia3.feedforward")
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
