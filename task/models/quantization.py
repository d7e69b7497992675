"""Quantised bases: the frozen linear layers in 8 or 4 bits, by bitsandbytes.

8 bits: LLM.int8 (Dettmers et al., arXiv 2208.07339), with features of more than 6 in 16 bits. 4 bits: NF4 with double
quantisation (QLoRA, Dettmers et al., arXiv 2305.14314). Norm layers, embeddings, heads, biases and everything that a
tuning adds keep their precision. The base's files stay as they are: each process quantises what it has read.
"""

from importlib import import_module
from typing import Any

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from task.config import TaskConfig
from task.model_settings import MISSING, Model
from task.models.bare import absent, is_absent
from task.models.base import BaseError
from task.process_memory import drop_file_pages, give_back_large_blocks, trim_heaps
from task.tunings.base import Head
from task.tunings.parts.trainable import adaptable, ends, is_transposed

WIDE = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")  # transformers' lists of layers to keep in 32 bits
TRIMMED_EVERY = 2**28  # bytes of weights; after each layer it costs a sixth of the time
OUTLIERS = 6.0  # size from which features are multiplied in 16 bits


def quantize(module: Any, head: Head, config: TaskConfig, device: str) -> None:
    """Replace the linear layers outside the head by quantised ones, on `device`.

    Layers whose weights the model reads directly, and those that transformers keeps in 32 bits, stay. Raises BaseError
    without bitsandbytes, and for a model without linear layers.
    """
    key = f"model.quantization = '{config.model.quantization}'"
    try:
        layers = import_module("bitsandbytes.nn")
    except ImportError as error:
        raise BaseError(f"{key} {MISSING}", f"{key} {MISSING}") from error
    names = [name for name in adaptable(module, head) if _fits(module, name)]
    if not names:
        problem = f"{key} is for linear layers, and this model has none outside its head; set it to 'none'"
        raise BaseError(problem, problem)
    made = _in_8_bits if config.model.quantization == "8bit" else _in_4_bits
    if device == "cpu":
        give_back_large_blocks()
    read = 0
    for name in names:
        weight = module.get_submodule(name).weight
        module.set_submodule(name, made(layers, module.get_submodule(name), config.model, device))
        drop_file_pages(weight)
        read += weight.nbytes
        if read >= TRIMMED_EVERY:
            trim_heaps()
            read = 0
    trim_heaps()
    setattr(module, f"is_loaded_in_{config.model.quantization}", True)  # by which peft knows


def numbers_of(parameter: torch.Tensor) -> int:
    """Return how many weights a parameter has; 4-bit weights lie two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def _fits(module: Any, name: str) -> bool:
    wide = [part for key in WIDE for part in getattr(module, key, None) or ()]
    layer = module.get_submodule(name)
    return not isinstance(layer, NonDynamicallyQuantizableLinear) and not any(ends(name, ending) for ending in wide)


def _outputs_by_inputs(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight.detach()
    turned = weight.T if is_transposed(layer) else weight
    return turned if is_absent(weight) else turned.contiguous()


def _in_4_bits(bitsandbytes: Any, layer: Any, model: Model, device: str) -> Any:
    bare, weight, biased = is_absent(layer.weight), _outputs_by_inputs(layer), layer.bias is not None
    options = {"compress_statistics": model.double_quantization, "quant_type": "nf4"}
    computed = getattr(torch, model.computes_in)
    with torch.device("meta"):
        made = bitsandbytes.Linear4bit(*weight.shape[::-1], biased, compute_dtype=computed, **options)
    if bare:
        made.weight = bitsandbytes.Params4bit(
            _coded(weight, torch.uint8), requires_grad=False, bnb_quantized=True, **options
        )
    else:
        made.weight = bitsandbytes.Params4bit(weight, requires_grad=False, module=made, **options).to(device)
    made.quant_state = made.weight.quant_state
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # else an evaluation repacks the weights, and later steps have other bits
    return made


def _coded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight of a bare base as the codes of a quantised one, which are as absent."""
    return absent(tuple(weight.shape), dtype, 0)


def _nothing() -> None:
    """Leave the state of a layer as it is."""


def _in_8_bits(bitsandbytes: Any, layer: Any, model: Model, device: str) -> Any:
    bare, weight, biased = is_absent(layer.weight), _outputs_by_inputs(layer), layer.bias is not None
    with torch.device("meta"):
        made = bitsandbytes.Linear8bitLt(*weight.shape[::-1], biased, has_fp16_weights=False, threshold=OUTLIERS)
    if bare:
        codes, scales = _coded(weight, torch.int8), absent((len(weight),), torch.float32)
        made.weight = bitsandbytes.Int8Params(codes, False, False, CB=codes, SCB=scales)
        made.state.CB, made.state.SCB = codes, scales
        made.bias = layer.bias
        return made
    made.weight = bitsandbytes.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    made.state.CB, made.state.SCB = made.weight.CB, made.weight.SCB
    made.init_8bit_state = _nothing  # it would do that in a forward pass, while other threads use the layer; and again,
    # without scales, after peft has moved the weight for DoRA
    made.bias = layer.bias
    return made
