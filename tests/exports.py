"""What a run wrote, as others load it."""

from typing import Any

from in_process import Outcome


def exported(outcome: Outcome, which: str) -> Any:
    """The `last` or `best` model of the results folder as others load it: by transformers, and peft for adapters."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForImageClassification

    folder = outcome.folder / "model" / which
    if not outcome.run.task.tuning.has_ranks:
        return AutoModelForImageClassification.from_pretrained(folder).eval()
    named = PeftConfig.from_pretrained(folder).base_model_name_or_path
    return PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(named), folder).eval()
