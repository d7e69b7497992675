"""Train the embedded base and write `task/models/embedded/weights.py`: `make embedded-base`.

A vision transformer of 136,138 weights learns 600 upright digits in 30 epochs, 14 to 20 seconds on one core. Another
processor, more threads or oneDNN would give other bits. So the training runs in a process of its own with PyTorch's
baseline kernels and one thread; tests/test_bases.py runs it again and compares the bits.
"""

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "task" / "models" / "embedded" / "weights.py"
EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, SEED = 30, 32, 2e-3, 0.01, 0
BASELINE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WIDTH = 1800  # characters a line: few lines, and none that an editor cannot open


def trained_weights() -> bytes:
    """Return the weights, in float16 as safetensors, trained by a process with baseline kernels."""
    command = [sys.executable, "-m", "benchmarks.embedded_base", "--train"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | BASELINE, stdout=subprocess.PIPE, check=True).stdout


def module_text(weights: bytes) -> str:
    """Return the source of the module that holds these weights."""
    text = base64.b85encode(weights).decode()
    lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    return "\n".join(
        [
            '"""The embedded base: safetensors in float16, as base 85. Written by `make embedded-base`."""',
            "",
            f'DIGEST = "{hashlib.blake2b(weights, digest_size=16).hexdigest()}"',
            "WEIGHTS = (",
            *(f'    "{line}",' for line in lines),
            ")",
            "",
        ]
    )


def train() -> Any:
    """Return the model, trained on the upright digits with the kernels and threads of this process."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from task.data.sources.digits import digits_part
    from task.models.embedded import ARCHITECTURE
    from task.seeds import derive

    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    torch.manual_seed(derive("embedded", SEED))
    images, labels = digits_part("public")
    pixels = torch.from_numpy(images).float().div_(16.0).sub_(0.5).div_(0.5)
    targets = torch.from_numpy(labels)
    model = ViTForImageClassification(ViTConfig(**ARCHITECTURE))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(targets) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(targets)), BATCH_SIZE):
            loss = model(pixel_values=pixels[rows], labels=targets[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def _print_weights() -> None:
    from safetensors.torch import save

    weights = {name: tensor.half().contiguous() for name, tensor in train().state_dict().items()}
    sys.stdout.buffer.write(save(weights, {"format": "pt"}))


if __name__ == "__main__":
    if "--train" in sys.argv:
        _print_weights()
    else:
        MODULE.write_text(module_text(trained_weights()))
