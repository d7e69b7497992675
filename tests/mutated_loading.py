"""A process that is offered damaged and forged bases, and uses those that it takes (run by a test)."""

import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hostile_values import replaced
from safetensors.torch import load_file, save_file
from samples import language_base

from task.config import Model, TaskConfig
from task.data.encoding.images import ImageEncoder
from task.data.encoding.texts import check_ids, padding, tokenized, tokenizer_in
from task.data.raw import DataError
from task.models.base import Base, BaseError
from task.models.base import content_hash as fingerprint_of
from task.models.finding import accept_offer, node_base
from task.models.loading import loaded
from task.storage.store import Store, server_store
from task.tunings.parts.trainable import inside

TEXTS = ["add one and two", "say cold hot night day not"]
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    {"a": 1},
    [1] * 9,
]
Contents = dict[str, bytes]


def main(folder: Path, count: int, seed: int) -> None:
    """Print what became of `count` bases."""
    store = Store(folder / "store")
    kinds = {"causal-lm": _texts(folder), "image-classification": _images(folder)}
    found: Counter[str] = Counter()
    strange: list[str] = []
    slowest = 0.0
    for number in range(count):
        numbers = random.Random(f"{seed}/{number}")
        kind = numbers.choice(sorted(kinds))
        changed, what = _mutated(kinds[kind], numbers)
        began = time.monotonic()
        try:
            found[_fate(kinds[kind], changed, kind, store)] += 1
        except Exception:  # noqa: BLE001  that is what is looked for
            strange.append(f"{number} {kind} {what}: {traceback.format_exc()[-600:]}")
        slowest = max(slowest, time.monotonic() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**found, "bases": count, "slowest": slowest, "MB": memory, "strange": strange[:20]}))


def _fate(whole: Contents, changed: Contents, kind: str, store: Store) -> str:
    """Whether a base is refused, found unusable, or used; AssertionError where it is taken wrongly."""
    announced = _print(whole)
    if changed != whole:
        try:
            accept_offer(changed, announced, store)
        except BaseError:
            assert not store.path("bases", announced).exists()
        else:
            raise AssertionError("another base was taken for the one that was announced")
    wanted = _print(changed)
    try:
        accept_offer(changed, wanted, store)
    except BaseError as error:
        assert not store.path("bases", wanted).exists()
        _check_told(error.public)
        return "refused"
    try:
        _used(node_base(Model(name="given"), wanted, store), changed, kind)
    except (BaseError, DataError) as error:
        _check_told(error.public)
        return "unusable"
    finally:
        store.remove("bases", wanted)
    return "used"


def _used(base: Base, contents: Contents, kind: str) -> None:
    """What a node does with a base, up to a model's answer; what is in the model is what was sent."""
    flat = {"task.kind": kind, "model.name": "given", "data.name": "given"}
    if kind == "causal-lm":
        tokenizer = tokenizer_in(base.folder)
        ids = tokenized(tokenizer, TEXTS)
        check_ids([torch.tensor(row).numpy() for row in ids], padding(tokenizer, base.folder), base.folder)
        module, head, _ = loaded(base, TaskConfig.read(flat))
        module(input_ids=torch.tensor([(ids[0] or [0])[:8]]))
    else:
        wanted = ImageEncoder.of(base.folder, "image")
        module, head, _ = loaded(base, TaskConfig.read({**flat, "data.labels": "0|1|2|3|4|5|6|7|8|9"}))
        assert wanted.look.fitting().height <= 4096
    state, sent = module.state_dict(), load_file(base.folder / "model.safetensors")
    drawn = head.modules if head.along else []
    same = [n for n in sent.keys() & state.keys() if state[n].shape == sent[n].shape and not inside(n, drawn)]
    assert all(torch.equal(state[name], sent[name].to(state[name].dtype)) or sent[name].isnan().any() for name in same)


def _check_told(public: str) -> None:
    assert "/" not in public.replace("and/or", ""), public


def _print(contents: Contents) -> str:
    return fingerprint_of({name: (len(data), [data]) for name, data in contents.items()})


# ---------------------------------------------------------------------- bases, and what is done to them


def _texts(folder: Path) -> Contents:
    return _read(language_base(folder / "language"))


def _images(folder: Path) -> Contents:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
    ViTForImageClassification(shape).save_pretrained(folder / "vision")
    (folder / "vision" / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    return _read(folder / "vision")


def _read(folder: Path) -> Contents:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _mutated(whole: Contents, numbers: random.Random) -> tuple[Contents, str]:
    name = numbers.choice(sorted(whole))
    kinds = [_cut, _flipped, _more, _zeroed]
    kinds += [_edited, _edited, _edited] if name.endswith(".json") else [_header, _header]
    kind = numbers.choice(kinds)
    changed = dict(whole)
    for _ in range(numbers.choice((1, 1, 3))):
        changed[name] = kind(changed[name], numbers)
    if numbers.random() < 0.03:
        del changed[numbers.choice(sorted(changed))]
    return changed, f"{name} {kind.__name__}"


def _cut(data: bytes, numbers: random.Random) -> bytes:
    return data[: numbers.randrange(len(data) + 1)]


def _flipped(data: bytes, numbers: random.Random) -> bytes:
    place = numbers.randrange(max(1, min(len(data), numbers.choice((16, 4096, 10**9)))))
    return data[:place] + bytes([data[place] ^ 1 << numbers.randrange(8)]) + data[place + 1 :] if data else data


def _more(data: bytes, numbers: random.Random) -> bytes:
    place = numbers.randrange(len(data) + 1)
    return data[:place] + numbers.randbytes(numbers.choice((1, 8, 1000))) + data[place:]


def _zeroed(data: bytes, numbers: random.Random) -> bytes:
    place = numbers.randrange(len(data) + 1)
    return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]


def _header(data: bytes, numbers: random.Random) -> bytes:
    """Of safetensors: another length, another shape, other places, tensors twice or in each other."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        name = numbers.choice([name for name in header if name != "__metadata__"])
    except (ValueError, IndexError, AttributeError):
        return _flipped(data, numbers)
    kind = numbers.randrange(5)
    if kind == 0:
        return numbers.choice((0, 1, length + 1, 2**32, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    if kind == 1:
        header[name]["shape"] = numbers.choice(([], [0], [2**40], [2**33, 2**33], [-1], ["x"], [16, 1], None))
    elif kind == 2:
        header[name]["data_offsets"] = numbers.choice(([0, 0], [0, 2**60], [10, 5], [-8, 8], "x"))
    elif kind == 3:
        header[name]["dtype"] = numbers.choice(("F64", "I64", "BOOL", "U8", "F8_E4M3", "XXX", 7))
    else:
        header["y" * numbers.choice((1, 100_000))] = header.pop(name)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _edited(data: bytes, numbers: random.Random) -> bytes:
    """A value of JSON changed, removed, or put into itself."""
    try:
        found = json.loads(data)
    except ValueError:
        return _flipped(data, numbers)
    places = list(_places(found))
    if not places:
        return json.dumps(numbers.choice(ODD)).encode()
    deep = numbers.random() < 0.02
    value: Any = json.loads("[" * 300 + "]" * 300) if deep else numbers.choice(ODD)
    return json.dumps(replaced(found, numbers.choice(places), value)).encode()


def _places(found: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in JSON; of a long list or table the first ones."""
    children = list(found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ())
    here = [(*place, key) for key, _ in children[:40]]
    return here + [inner for key, child in children[:40] for inner in _places(child, (*place, key))]


if __name__ == "__main__":
    server_store()
    save_file({}, Path(sys.argv[1]) / "empty.safetensors")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
