"""The settings of the base: which it is, and how a process holds it."""

from dataclasses import dataclass
from importlib.util import find_spec

from task.schema import option

EMBEDDED_MODEL = "embedded"
DTYPES = ("float32", "bfloat16", "float16")
UNQUANTIZED, QUANTIZED = "none", ("8bit", "4bit")
MISSING = "needs the package bitsandbytes, which is not installed here: pip install 'thistledown[quantization]'"


@dataclass(frozen=True)
class Model:
    name: str = option(
        EMBEDDED_MODEL, doc='a hub id, a local folder, or "embedded": the small ViT that comes without a download'
    )
    dtype: str = option(
        "float32",
        choices=DTYPES,
        doc="the precision that weights are kept and trained in: float32, bfloat16, float16",
    )
    quantization: str = option(
        UNQUANTIZED,
        choices=(UNQUANTIZED, *QUANTIZED),
        doc="of the frozen linear layers: none, 8bit, 4bit (NF4); a node's own `quantization` goes first",
    )
    double_quantization: bool = option(True, doc="4bit: quantise the scales too, which saves 0.4 bits a weight")
    compute_dtype: str = option(
        "auto", choices=("auto", *DTYPES), doc="4bit: the precision that weights are multiplied in; auto: model.dtype"
    )
    offer: bool = option(True, doc="may the server send its copy of the base to nodes that lack it?")
    trust_remote_code: bool = option(False, doc="run code that comes with a hub model? only if you have read it")

    @property
    def quantized(self) -> bool:
        """Return whether the frozen linear layers are quantised."""
        return self.quantization != UNQUANTIZED

    @property
    def computes_in(self) -> str:
        """Return the name of the dtype that 4-bit weights are multiplied in."""
        return self.dtype if self.compute_dtype == "auto" else self.compute_dtype

    def problems(self) -> list[str]:
        """Return the problems between options that are each valid, and what this machine lacks."""
        found = []
        if self.compute_dtype != "auto" and self.quantization != "4bit":
            found.append(f"model.compute-dtype = '{self.compute_dtype}' is an option of model.quantization = '4bit'")
        if self.quantized and find_spec("bitsandbytes") is None:
            found.append(f"model.quantization = '{self.quantization}' {MISSING}")
        return found
