"""A federation as Flower's own examples of fine-tuning write one: each message loads the model, trains, and sends the
adapter's tensors. It stands alone, as Flower packs this folder for its workers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

EVALUATED = 32  # rows at a time
client = ClientApp()
server = ServerApp()


def settings(context: Context) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the case, and its settings."""
    folder = Path(str(context.run_config["folder"]))
    return folder, json.loads((folder / "case.json").read_text())


def built(case: dict[str, Any]) -> Any:
    """Return the model to be trained."""
    torch.manual_seed(0)
    loader = getattr(transformers, case["auto_class"])
    more = {"num_labels": case["labels"], "ignore_mismatched_sizes": True, "trust_remote_code": False}
    model = loader.from_pretrained(case["base"], **more)
    if not case["rank"]:
        return model
    heads = [name for name in ("classifier", "score") if hasattr(model, name)]
    return get_peft_model(model, LoraConfig(r=case["rank"], target_modules="all-linear", modules_to_save=heads))


def tensors_of(model: Any, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what is exchanged."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model) if case["rank"] else model.state_dict()
    return found


def install(model: Any, tensors: dict[str, torch.Tensor], case: dict[str, Any]) -> None:
    """Set what is exchanged."""
    if case["rank"]:
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on a node's rows."""
    torch.set_num_threads(1)
    folder, case = settings(context)
    rows = load_file(folder / f"rows-{context.node_config['partition-id']}.safetensors")
    model = built(case)
    install(model, message.content["arrays"].to_torch_state_dict(), case)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case["rate"], weight_decay=0.0, fused=True)
    count = len(rows["labels"])
    left = case["steps"] or -(-count // case["batch"]) * case["epochs"]
    while left:
        for positions in torch.randperm(count).split(case["batch"])[:left]:
            optimizer.zero_grad(set_to_none=True)
            model(**{name: tensor[positions] for name, tensor in rows.items()}).loss.backward()
            optimizer.step()
            left -= 1
    reply = {
        "arrays": ArrayRecord({name: tensor.contiguous() for name, tensor in tensors_of(model, case).items()}),
        "metrics": MetricRecord({"num-examples": count}),
    }
    return Message(content=RecordDict(reply), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, each scored on the server's rows."""
    torch.set_num_threads(1)
    folder, case = settings(context)
    model, test = built(case), load_file(folder / "test.safetensors")

    @torch.no_grad()
    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        install(model, arrays.to_torch_state_dict(), case)
        model.eval()
        right = 0
        for positions in torch.arange(len(test["labels"])).split(EVALUATED):
            output = model(**{name: tensor[positions] for name, tensor in test.items()})
            right += int((output.logits.argmax(-1) == test["labels"][positions]).sum())
        print(f"round {number}: accuracy {right / len(test['labels']):.3f}", flush=True)
        return MetricRecord({"accuracy": right / len(test["labels"])})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=case["nodes"], min_available_nodes=case["nodes"])
    start = ArrayRecord({name: tensor.contiguous() for name, tensor in tensors_of(model, case).items()})
    strategy.start(grid, start, num_rounds=case["rounds"], evaluate_fn=evaluate)
