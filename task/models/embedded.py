"""The embedded base: a small vision transformer, trained once on upright digits and cached.

It stands for a public pretrained model where there is no network. It is also a real private base: it is on no hub, so
nodes can only get it from the server.
"""

import json
from pathlib import Path
from typing import Any

from task.seeds import derive
from task.storage.store import Store, recipe_hash

ARCHITECTURE = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10,
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, SEED = 30, 32, 2e-3, 0.01, 0
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5], "image_std": [0.5],
}  # fmt: skip


def trained_base(store: Store) -> Path:
    """Return the folder of the embedded base; train it (some seconds on one core) if the store lacks it."""
    import torch

    training = [EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, SEED]
    key = recipe_hash([ARCHITECTURE, training, PREPROCESSOR, torch.__version__, "digits/public"])
    with store.made("embedded", key) as draft:
        if draft is not None:
            _train(draft)
    return store.path("embedded", key)


def _train(folder: Path) -> None:
    """Train the embedded base on one thread, whatever the process uses: more threads would give other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("embedded", SEED))
            _fitted().save_pretrained(folder)
    finally:
        torch.set_num_threads(threads)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR) + "\n")


def _fitted() -> Any:
    """Return the model, trained on the upright digits."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils.logging import disable_progress_bar

    from task.data.sources.digits import digits_part

    disable_progress_bar()
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
