"""The loop that a federation's local training is compared with: plain transformers and peft, in one process.

`python -m benchmarks.plain_loop BASE --strategy full` trains a causal language model for a few steps on random tokens,
as `benchmarks.large` has its nodes do, and keeps nothing of before. Its memory is watched from outside.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.large import BATCH, LENGTH, STEPS, STRATEGIES


def train(base: Path, adapter: bool) -> float:
    """Train the model in `base`, or a LoRA of rank 8 on it; return the last loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters) if adapter else torch.optim.SGD(parameters, lr=0.01)
    loss = torch.zeros(())
    for _ in range(STEPS):
        ids = torch.randint(model.config.vocab_size, (BATCH, LENGTH))
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss)


def main() -> None:
    """Train as the command line says, and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="a folder with a causal language model")
    parser.add_argument("--strategy", default="lora", choices=tuple(STRATEGIES), help="ferret trains as full does")
    own = parser.parse_args()
    print(train(own.base, own.strategy == "lora"))


if __name__ == "__main__":
    main()
