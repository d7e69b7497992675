"""A tuned language model in plain transformers and peft: the same loss and the same greedy texts as in the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Outcome, federate
from samples import language_base, write_table
from torch.nn.functional import cross_entropy
from tuned import ROWS

from server_app.results.samples import GENERATIONS, Samples

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
STORIES = ASSETS / "stories260k-llama"
NEW = 16  # tokens of an answer


def instructions(folder: Path) -> Path:
    """Write rows to train on and four others, each a prompt and an answer that fit."""
    write_table(folder / "train.jsonl", ROWS)
    others: dict[str, list[object]] = {
        "instruction": ["add two and one", "say not night", "say not cold", "say one and two"],
        "output": ["three", "day", "hot", "one two"],
    }
    write_table(folder / "test.jsonl", others)
    return folder


@pytest.fixture(params=["random", pytest.param("stories260k", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Outcome:
    if request.param == "stories260k" and not STORIES.exists():
        pytest.skip("../shared/assets/stories260k-llama is not here")
    base = STORIES if request.param == "stories260k" else language_base(tmp_path / "base")
    (tmp_path / "data").mkdir()
    options = {
        "task.kind": "causal-lm", "model.name": str(base), "data.name": str(instructions(tmp_path / "data")),
        "data.partitioner": "iid", "data.max-length": 48, "data.max-completion-length": NEW, "data.test-rows": 0,
        "num-server-rounds": 2, "simulation.num-supernodes": 2, "local-steps": 3, "learning-rate": 0.01,
        "lora.ranks": "8", "lora.targets": "all-linear", "evaluate-generations": 4,
    }  # fmt: skip
    return federate(tmp_path / "run", options)


def plain(outcome: Outcome) -> tuple[Any, Any]:
    """The last model and its tokenizer, as others load them."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = outcome.folder / "model" / "last"
    named = PeftConfig.from_pretrained(folder).base_model_name_or_path
    module = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), folder)
    return module.eval(), AutoTokenizer.from_pretrained(folder)


def test_an_exported_adapter_has_the_loss_and_the_texts_of_the_run(run: Outcome) -> None:
    module, tokenizer = plain(run)
    samples = {line["reference"]: line["last"] for line in Samples(run.folder, GENERATIONS).read()}
    losses: list[torch.Tensor] = []
    for text in (Path(run.run.task.data.name) / "test.jsonl").read_text().splitlines():
        row = json.loads(text)
        prompt = tokenizer(f"Task:\n{row['instruction']}\n\nAnswer:\n")["input_ids"]
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        whole = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = module(input_ids=whole).logits[0, len(prompt) - 1 : -1]
            written = module.generate(input_ids=torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        losses.append(cross_entropy(logits, whole[0, len(prompt) :], reduction="none"))
        assert samples[row["output"]] == tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip()
    assert run.rounds[-1]["server-test-loss"] == pytest.approx(float(torch.cat(losses).double().mean()), rel=1e-5)
