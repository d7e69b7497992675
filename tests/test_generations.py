"""Held-out rows answered by generation (`evaluate-generations`): what is written, its ratings, what leaves a node."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Outcome, federate, resumed
from rouge_score.tokenize import tokenize
from tuned import FITTING, ROWS, Sample, federation, samples

import thistledown
from server_app.config import RunConfig
from server_app.results.samples import GENERATIONS, Samples, generation_table
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Completions, LabelledTokens, Rows, Tokens
from task.prediction.exchanges import last_learned
from task.prediction.ratings import RATINGS, rated
from task.prediction.sampled import answered
from task.schema import ConfigError
from task.storage.store import server_store

ROWS_ANSWERED = 3
NEW = 8  # tokens of an answer, half of data.max-length


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Sample:
    return samples(tmp_path_factory.mktemp("models"), words)["llama"]


def options(sample: Sample, **more: Any) -> dict[str, Any]:
    """Two rounds at a rate that changes answers."""
    keys = {"num-server-rounds": 2, "learning-rate": 0.05, "evaluate-generations": ROWS_ANSWERED}
    return federation(sample, "lora") | keys | more


@pytest.fixture(scope="module")
def run(llama: Sample, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("run"), options(llama))


def greedy(module: Any, tokenizer: Any, ids: list[int], most: int) -> str:
    """One token after the other, without a cache and without a batch."""
    new: list[int] = []
    while len(new) < most:
        with torch.no_grad():
            new.append(int(module(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


# ---------------------------------------------------------------------------------------------- ratings
def longest_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, by its definition."""
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return longest_common(one[:-1], other[:-1]) + 1
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    from nltk.stem.porter import PorterStemmer

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["cats", "cat", "sat", "on", "mats"], 5)) for _ in range(12)]
    expected = []
    for answer, reference in zip(texts[:6], texts[6:], strict=True):
        one, other = (tokenize(text, PorterStemmer()) for text in (answer, reference))
        expected.append(2 * longest_common(one, other) / (len(one) + len(other)))
    assert rated(texts[:6], texts[6:])["rouge-l"] == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Cat, sat.", "cat sat", 1, 1),
        ("a cat", "the cat sat", 0, 2 / 3),
        ("cat cat", "cat", 0, 2 / 3),
        ("", "cat", 0, 0),
        ("the", "", 1, 1),
        ("Ein Bär", "ein bär", 1, 1),
    ],
)
def test_exact_match_and_f1_are_squads(answer: str, reference: str, exact: float, f1: float) -> None:
    found = rated([answer], [reference])
    assert (found["exact-match"], found["word-f1"]) == (exact, pytest.approx(f1))
    assert list(found) == list(RATINGS)


# ---------------------------------------------------------------------------------------------- rows
def test_a_row_is_asked_for_what_it_teaches_last() -> None:
    tokens = Tokens(np.arange(9, dtype=np.int32), np.array([0, 4, 9]), 0)
    completions = Rows(Completions(tokens, np.array([1, 3])), np.zeros(2, np.int64), ())
    assert [last_learned(completions, row) for row in (0, 1)] == [([0], [1, 2, 3]), ([4, 5, 6], [7, 8])]
    labels = np.array([0, 1, 2, 3, -100, 5, -100, 7, -100])
    chats = Rows(LabelledTokens(tokens, labels), np.zeros(2, np.int64), ())
    assert [last_learned(chats, row) for row in (0, 1)] == [([0], [1, 2, 3]), ([4, 5, 6], [7])]


@pytest.mark.first(3)
@pytest.mark.parametrize("tuning", [tuning for kind, tuning in FITTING if kind == "llama"])
def test_a_model_in_training_answers_as_it_would_token_by_token(llama: Sample, tuning: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama.base.folder)
    model = llama.build(tuning)
    with torch.no_grad():
        for tensor in model.trained.values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    config = llama.config(tuning, **{"evaluate-generations": 3})
    rows = prepare(config, llama.base.folder, server_store()).train
    found = answered(model, config, rows, "cpu")
    assert len(found) == ROWS_ANSWERED
    assert {one.reference for one in found} <= set(map(str, ROWS["output"]))
    for one in found:
        ids = tokenizer(one.prompt)["input_ids"]
        assert one.answer == greedy(model.module, tokenizer, ids, NEW), tuning


# ---------------------------------------------------------------------------------------------- server
def test_samples_are_answered_before_training_and_at_the_end(run: Outcome) -> None:
    lines = [json.loads(line) for line in (run.folder / GENERATIONS).read_text().splitlines()]
    assert len(lines) == ROWS_ANSWERED
    best = thistledown.Outcome(run.folder)
    for line in lines:
        assert list(line) == ["prompt", "reference", "before", "last", "best"]
        question = line["prompt"].removeprefix("Task:").removesuffix("Answer:").strip()
        assert best.predict([question], "best")[0].answer == line["best"]
        assert best.predict([question], "last")[0].answer == line["last"]
    first, last = run.rounds[0], run.rounds[2]
    references = [line["reference"] for line in lines]
    for line, which in ((first, "before"), (last, "last")):
        found = {name: line[f"server-test-{name}"] for name in RATINGS}
        assert found == rated([one[which] for one in lines], references)
        assert run.summary["generations"][which] == found
    assert run.summary["generations"]["best"] == rated([one["best"] for one in lines], references)
    assert not any(name in key for key in run.rounds[1] for name in RATINGS)
    page = (run.folder / "report.html").read_text()
    assert "<h2>Sample generations</h2>" in page
    assert '<th scope="col">Rouge-L</th>' in page


@pytest.mark.slow
def test_a_resumed_run_keeps_the_first_answers(llama: Sample, tmp_path: Path) -> None:
    outcome = federate(tmp_path, options(llama, **{"num-server-rounds": 1}))
    before = Samples(outcome.folder, GENERATIONS).read()
    longer = resumed(outcome.folder, {"num-server-rounds": 2})
    after = Samples(outcome.folder, GENERATIONS).read()
    assert [line["before"] for line in after] == [line["before"] for line in before]
    assert longer.summary["generations"]["last"] == rated(
        [line["last"] for line in after], [line["reference"] for line in after]
    )


def test_samples_hold_any_text(tmp_path: Path) -> None:
    """Some readers of lines take U+2028 and the like for the end of one."""
    text = "one\u2028two\u2029three\x85four\x0cfive\r\nsix"
    samples = Samples(tmp_path, GENERATIONS)
    samples.add("before", [{"prompt": text, "reference": text}], [text])
    samples.copy("before", "last")
    assert samples.read() == [dict.fromkeys(("prompt", "reference", "before", "last"), text)]


def test_texts_are_escaped_in_the_report(tmp_path: Path) -> None:
    row = {"prompt": "<script>alert(1)</script>", "reference": "a & b"}
    Samples(tmp_path, GENERATIONS).add("before", [row], ["<b>"])
    assert "<script>" not in generation_table(tmp_path)
    assert "&lt;script&gt;" in generation_table(tmp_path)


# ---------------------------------------------------------------------------------------------- nodes
def test_nodes_send_ratings_and_no_texts(llama: Sample, tmp_path: Path) -> None:
    more = {"evaluate": "nodes", "data.holdout": 0.4}
    outcome = federate(tmp_path, options(llama, **more))
    assert not (outcome.folder / GENERATIONS).exists()
    for exchange in outcome.grid.of("evaluate"):
        assert exchange.reply is not None
        assert [name for name in exchange.reply if name not in ("metrics",)] == []
    for number, entry in enumerate(outcome.rounds):
        own = {line["node"]: line["metrics"] for line in entry["evaluations"]}
        assert list(own) == ["0", "1"]
        weights = [metrics["num-examples"] for metrics in own.values()]
        for name in ("loss", *(RATINGS if number in (0, 2) else ())):
            mean = np.average([metrics[name] for metrics in own.values()], weights=weights)
            assert entry[f"nodes-{name}"] == pytest.approx(mean)
        assert all(("rouge-l" in metrics) == (number in (0, 2)) for metrics in own.values())
    assert set(outcome.summary["generations"]) >= {"before", "last"}
    assert "<h2>Nodes</h2>" in (outcome.folder / "report.html").read_text()


@pytest.mark.slow
def test_nodes_rate_the_last_state_of_a_run_that_stops_early(llama: Sample, tmp_path: Path) -> None:
    """They cannot know beforehand that it is the last one, so they are asked once more."""
    stop = {"early-stopping.patience": 1, "early-stopping.min-delta": 1e5}
    outcome = federate(
        tmp_path, options(llama, **{"evaluate": "nodes", "data.holdout": 0.4}, **stop) | {"num-server-rounds": 9}
    )
    assert [line["round"] for line in outcome.rounds] == [0, 1]
    assert set(outcome.summary["generations"]) >= {"before", "last"}
    last = outcome.rounds[-1]
    assert all("rouge-l" in line["metrics"] for line in last["evaluations"])
    assert last["nodes-rouge-l"] == outcome.summary["generations"]["last"]["rouge-l"]
    assert len(outcome.grid.of("evaluate")) == 2 * 3


@pytest.mark.slow
def test_a_rating_of_few_rows_is_against_a_nodes_policy(llama: Sample, tmp_path: Path) -> None:
    """Three rows are held out, enough for a loss; two of them are to be answered."""
    more = {"evaluate": "nodes", "data.holdout": 0.4, "num-server-rounds": 1, "evaluate-generations": 2}
    outcome = federate(tmp_path, options(llama, **more), node_configs={0: {"policy.min-rows-per-reply": 3}})
    refused = {line["node"]: line["refused"] for line in outcome.rounds[0]["evaluations"]}
    assert refused["0"].endswith("policy: a score of 2 rows; min-rows-per-reply is 3 of 7")
    assert refused["1"] == ""


# ---------------------------------------------------------------------------------------------- settings
def test_kinds_without_texts_are_refused_before_any_node_is_asked() -> None:
    with pytest.raises(ConfigError, match=r"evaluate-generations is for kinds that write texts"):
        TaskConfig.read({"evaluate-generations": 5})


def test_outputs_without_prompts_are_refused(llama: Sample) -> None:
    with pytest.raises(ConfigError, match=r"outputs are learned whole, nothing is asked; name data\.instruction"):
        llama.config("lora", **{"evaluate-generations": 5, "data.instruction-column": ""})


def test_where_rouge_score_is_missing(llama: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node needs it only if nodes evaluate."""
    monkeypatch.setattr("task.config.find_spec", lambda name: None)
    needs = r"evaluate-generations = 3 needs the package rouge-score, .*: pip install 'thistledown\[rouge\]'"
    with pytest.raises(ConfigError, match=needs):
        RunConfig.read(options(llama))
    with pytest.raises(ConfigError, match=needs):
        llama.config("lora", **{"evaluate-generations": 3, "evaluate": "nodes"})
    assert llama.config("lora", **{"evaluate-generations": 3}).evaluate_generations == ROWS_ANSWERED
