"""`thistledown check`: what a run would do and send."""

from pathlib import Path

import pytest
from samples import write_table

from server_app.config import RunConfig
from task.schema import ConfigError
from thistledown.commands.check import check
from thistledown.estimates.choices import choices
from thistledown.settings import Settings

APP = Path(__file__).parent.parent


def explained(tmp_path: Path, *overrides: str) -> str:
    lines: list[str] = []
    check(Settings.read(APP, None, overrides, tmp_path), lines.append)
    return "\n".join(lines)


def test_check_says_what_each_node_would_do(tmp_path: Path) -> None:
    text = explained(tmp_path, "strategy='rbla' lora.ranks='2,4,8' simulation.num-supernodes=3 local-steps=7")
    assert "strategy  rbla" in text
    assert "29,322 of 165,460 parameters" in text
    for rank in (2, 4, 8):
        assert f"a round   sends a node of rank {rank} " in text
    nodes = [line.split() for line in text.split("rank at first and at last:\n")[1].splitlines()[:3]]
    assert [(node[0], node[3], node[4]) for node in nodes] == [("0", "7", "2"), ("1", "7", "4"), ("2", "7", "8")]
    assert sum(int(node[1]) for node in nodes) == 750


def test_check_says_what_changes_from_round_to_round(tmp_path: Path) -> None:
    said = "strategy='sa-fedlora' sa-fedlora.final-rank=4 num-server-rounds=4 simulation.num-supernodes=2"
    lines = explained(tmp_path, said).splitlines()
    sends = [line for line in lines if line.startswith("round")]
    assert [line.split(" sends")[0].strip() for line in sends] == ["round 1", "round 2", "round 3", "round 4"]
    full, eight, five, four = (float(line.split("gets ")[1].split()[0]) for line in sends)
    assert full > 3 * eight > 3 * five > 3 * four
    assert "and what rounds put into the base" in "\n".join(lines)
    assert next(line.split()[4:] for line in lines if line.startswith("   0 ")) == ["-", "4"]


@pytest.mark.first(1)
@pytest.mark.parametrize(("every", "rounds"), [(1, 12), (5, 3), (12, 1)])
def test_check_counts_what_is_sent_to_be_evaluated(tmp_path: Path, every: int, rounds: int) -> None:
    """Rounds 5, 10 and 12 of 12, say. Bytes are said with one decimal: 1.2 MB may be off by two percent either way."""

    def down(more: str) -> float:
        text = explained(tmp_path, f"num-server-rounds=12 simulation.num-supernodes=2 {more}")
        return float(text.split("the run   about ")[1].split()[0])

    assert down(f"evaluate='both' evaluate-every={every}") / down("") == pytest.approx(1 + rounds / 12, rel=0.02)


def test_check_counts_what_updates_put_into_a_journal(tmp_path: Path) -> None:
    said = "strategy='ferret' tuning='full' ferret.coordinates=2000 simulation.num-supernodes=5 num-server-rounds=3"
    text = explained(tmp_path, said)
    first, later = (line for line in text.splitlines() if line.startswith("round"))
    assert later.startswith("rounds 2-3 sends a node 2")  # 5 rows of 2,000 numbers of two bytes, and a little more
    assert " B and gets " in first
    assert "put into the base" not in text


def test_check_refuses_options_that_do_not_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ferret\.coordinates.*136,138 numbers in 3 blocks"):
        explained(tmp_path, "strategy='ferret' tuning='full' ferret.coordinates=2")


def test_check_says_when_ranks_are_evened_out(tmp_path: Path) -> None:
    text = explained(tmp_path, "lora.ranks='4,8' simulation.num-supernodes=3")
    assert "fedavg needs equal ranks: every node trains rank 4, the smallest budget" in text


def test_check_needs_no_data_where_nodes_bring_all(tmp_path: Path) -> None:
    text = explained(tmp_path, "data.partitioner='none' data.labels='a|b' evaluate='nodes' data.name='/nowhere'")
    assert "data      none on the server" in text
    assert "bring their own data" in text


@pytest.mark.parametrize("part", ["validation", "test"])
def test_check_refuses_to_score_a_part_without_rows(part: str, tmp_path: Path) -> None:
    images = [[[number] * 8] * 8 for number in range(12)]
    path = write_table(tmp_path / "rows.jsonl", {"image": images, "label": [0, 1] * 6})
    data = f"data.name='{path}' data.test-split='' data.{part}-fraction=0.0 data.partitioner='iid'"
    with pytest.raises(ConfigError, match=rf"the {part} part of .* has no rows, and evaluate = 'server' scores it"):
        explained(tmp_path, data)


TEXTS_RUN = {"task.kind": "text-classification", "model.name": "words", "data.name": "rows.csv"}


def test_check_states_what_saves_memory() -> None:
    pytest.importorskip("bitsandbytes")
    plain, saving = (
        list(choices(RunConfig.read(options)))
        for options in (
            TEXTS_RUN,
            TEXTS_RUN
            | {
                "micro-batch-size": 4, "gradient-checkpointing": True, "precision": "auto", "optimizer": "adamw-8bit",
                "model.quantization": "4bit", "model.compute-dtype": "bfloat16",
            },
        )
    )  # fmt: skip
    assert [line for line in saving if line not in plain] == [
        "training  3 epochs of 16 rows a round, 4 in memory at a time, adamw-8bit, learning rate 0.005",
        "precision products in bfloat16 where a device has it and steps are faster; parameters, gradients and "
        "optimizer as they are",
        "memory    gradient checkpointing: blocks keep their inputs, and are computed twice",
        "base      frozen linear layers in 4 bits (NF4, double quantisation), computed in bfloat16, unless a node "
        "chooses otherwise",
    ]
