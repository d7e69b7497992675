"""What a table of short federations leaves, to the bit: run it before and after a change that must not show.

`python tests/bits.py before.json` runs every federation in this process and writes what each left: a hash of its final
state, and the lines of metrics.jsonl without times. `python tests/bits.py before.json after.json` compares two such
files and exits with 1 where a state or a value differs. Compare files of one machine: another may round otherwise.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMES = ("seconds", "finished", "started")
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"strategy": name, "lora.ranks": ranks}
        for name, ranks in {
            "fedavg": "4", "fedprox": "4", "rbla": "2,4", "zero-pad": "2,4", "flex-lora": "2,4", "hetlora": "2,4",
            "ffa-lora": "4", "rolora": "4", "flora": "2,4", "fedex-lora": "4", "raflora": "2,4",
            "rbla-shrunk": "2,4",
        }.items()
    },
    "fedsa-lora": {"strategy": "fedsa-lora", "evaluate": "nodes"},
    "lora-fair": {"strategy": "lora-fair"},
    "flora-energy": {"strategy": "flora", "lora.ranks": "2,4", "flora.energy": 0.9},
    "fedrot-lora": {"strategy": "fedrot-lora"},
    "scaffold": {"strategy": "scaffold", "optimizer": "sgd"},
    "sa-fedlora": {"strategy": "sa-fedlora", "num-server-rounds": 4},
    "ferret": {"strategy": "ferret", "tuning": "full", "optimizer": "sgd"},
    "ferret-shared": {"strategy": "ferret", "tuning": "full", "optimizer": "sgd", "ferret.seeds": "shared"},
    "ferret-pool": {"strategy": "ferret", "tuning": "full", "optimizer": "sgd", "ferret.seeds": "pool"},
    "fedkseed": {"strategy": "fedkseed", "tuning": "full", "optimizer": "sgd", "fedkseed.directions": 64},
    **{
        f"tuning-{name}": {"tuning": name}
        for name in ("full", "bias", "head", "norm", "dora", "prompt", "adapter", "ssf")
    },
    **{
        f"wrapper-{name}": {"wrappers": name}
        for name in ("half", "quantize", "top-k", "norm-bound", "trimmed-mean", "median", "proximal", "top-k,half")
    },
    "clipped": {"wrappers": "central-privacy", "central-privacy.epsilon": 0.0},
    "both": {"evaluate": "both", "evaluate-every": 2},
    "dropout": {"simulation.dropout": 0.3, "min-success-fraction": 0.1},
    "falling": {"learning-rate-min": 0.001, "fraction-train": 0.5},
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write one file, or compare two."""
    if len(arguments) == 2:
        return compared(*(json.loads(Path(name).read_text()) for name in arguments))
    Path(arguments[0]).write_text(json.dumps(held(), indent=1) + "\n")
    return 0


def held() -> dict[str, Any]:
    """What every federation of the table leaves, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("THISTLEDOWN_CACHE", f"{folder}/cache")
        return {name: _left(Path(folder) / name, options) for name, options in CASES.items()}


def _left(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    import torch
    from in_process import federate, resumed

    torch.set_num_threads(1)
    small = {"num-server-rounds": 3, "simulation.num-supernodes": 4, "lora.targets": "q_proj,v_proj", "local-steps": 2}
    outcome = federate(folder, small | options)
    before = _read(outcome)
    rounds = outcome.run.server.num_server_rounds
    return {"whole": before, "resumed": _read(resumed(outcome.folder, {"num-server-rounds": rounds + 1}))}


def _read(outcome: Any) -> dict[str, Any]:
    state = outcome.state()
    hashed = hashlib.blake2b(digest_size=16)
    whole = state.tensors | state.server  # as one table, as in files from before the server had tensors of its own
    for name, tensor in sorted(whole.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hashed.update(tensor.contiguous().view(-1).numpy().tobytes())
    for entry in state.journal:
        hashed.update(entry.digest.encode())
    return {"state": hashed.hexdigest(), "lines": [_timeless(line) for line in outcome.rounds]}


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    line = {key: value for key, value in line.items() if key not in TIMES}
    line["nodes"] = [
        node | {"metrics": {key: value for key, value in node["metrics"].items() if key not in TIMES}}
        for node in line["nodes"]
    ]
    return line


RENAMED = {"inexactness": "aggregation-error"}  # keys of older files


def compared(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print every difference; 1 where there is one in a state or in a value that both have."""
    found = 0
    for name in before.keys() & after.keys():
        for part in ("whole", "resumed"):
            one, other = before[name][part], after[name][part]
            if one["state"] != other["state"]:
                found = 1
                print(f"{name}, {part}: another state")
            for number, (old, new) in enumerate(zip(one["lines"], other["lines"])):
                old = {RENAMED.get(key, key): value for key, value in old.items()}
                changed = [key for key in old.keys() & new.keys() if old[key] != new[key]]
                if changed:
                    found = 1
                    print(f"{name}, {part}, round {number}: {', '.join(sorted(changed))}")
    only = sorted(before.keys() ^ after.keys())
    print(f"{len(before.keys() & after.keys())} federations compared" + (f"; in one file only: {only}" if only else ""))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
