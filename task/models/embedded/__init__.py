"""The embedded base: a small vision transformer that knows upright digits, shipped with the app.

It stands for a public pretrained model where there is no network. It is also a real private base: it is on no hub, so
nodes can only get it from the server. `benchmarks/embedded_base.py` trained it; its weights are in
`task/models/embedded/weights.py`, so it has the same bits on every machine.
"""

import base64
import json
from pathlib import Path
from typing import Any

from task.storage.store import Store, recipe_hash

ARCHITECTURE: dict[str, Any] = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10,
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5], "image_std": [0.5],
}  # fmt: skip


def embedded_base(store: Store) -> Path:
    """Return the folder of the embedded base; write it if the store lacks it."""
    from task.models.embedded.weights import DIGEST

    key = recipe_hash([ARCHITECTURE, PREPROCESSOR, DIGEST])
    with store.made("embedded", key) as draft:
        if draft is not None:
            _write(draft)
    return store.path("embedded", key)


def _write(folder: Path) -> None:
    """Write the base as `save_pretrained` does, with weights in float32."""
    from safetensors.torch import load, save_file
    from transformers import ViTConfig

    from task.models.embedded.weights import WEIGHTS

    half = load(base64.b85decode("".join(WEIGHTS)))
    save_file({name: tensor.float() for name, tensor in half.items()}, folder / "model.safetensors", {"format": "pt"})
    ViTConfig(**ARCHITECTURE, architectures=["ViTForImageClassification"]).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR) + "\n")
