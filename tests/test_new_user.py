"""The four commands of docs/quickstart.md that lead from a file of one's own to answers and a report, as they stand."""

import csv
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from samples import WORDS
from text_models import classifier, word_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
SHORT = '-c "num-server-rounds=2 local-steps=2"'
SITES = ["north", "south"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with notes of two clinics, notes without a category, and a small base."""
    word_tokenizer(classifier(tmp_path / "base", "bert"))
    texts = [" ".join(words) for words in itertools.product(WORDS, repeat=3)][::2]
    kinds = ["billing" if "good" in text else "delivery" for text in texts]
    rows = zip(texts, kinds, itertools.cycle(SITES))
    for name, head, content in (
        ("notes", ["note", "category", "clinic"], rows),
        ("unread", ["note"], [["a film"]] * 3),
    ):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *content])
    return tmp_path


@pytest.mark.slow
@pytest.mark.flower
def test_from_a_file_to_answers_and_a_report_in_four_commands(place: Path) -> None:
    [block] = re.findall(r"<!-- run by tests/test_new_user.py -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(block.splitlines()) == 4
    text = block.replace(
        "new notes.csv", f"new notes.csv --model base {SHORT}"
    )  # nothing is downloaded, and it is short
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=place,
        env=os.environ
        | {"HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "BROWSER": "cat %s"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'data.id-column = "clinic"' in done.stdout
    with (place / "unread-predicted.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert [row["note"] for row in answers] == ["a film"] * 3
    assert {row["prediction"] for row in answers} <= {"billing", "delivery"}
    report = done.stdout[done.stdout.index("<!doctype html>") :]
    assert all(site in report for site in SITES)
    assert '<figure class="chart"' in report
