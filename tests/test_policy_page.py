"""docs/policy.md: its example is the file in deploy/, its table has every key, its command runs; and that command."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from client_app.policy import Policy
from task.schema import flatten, schema
from thistledown.commands.policy import SECTIONS, explained
from thistledown.main import DONE, WRONG, main

APP = Path(__file__).parent.parent
PAGE = (APP / "docs" / "policy.md").read_text()
EXAMPLE = APP / "deploy" / "policy.toml"
KEYS = schema(Policy)


def test_the_example_is_the_file_in_deploy() -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert tomllib.loads(block) == tomllib.loads(EXAMPLE.read_text())
    assert Policy.read(EXAMPLE).privacy.epsilon == 8.0


def test_the_table_has_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    assert rows.keys() == KEYS.keys()
    for key, value in flatten(Policy()).items():
        shown = (
            f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
        )
        assert rows[key] == shown or (shown == "" and rows[key] in ("all", "none")), key


@pytest.mark.slow
def test_its_command_runs() -> None:
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        program = f"PATH={APP / '.venv' / 'bin'}:$PATH\n{block}"
        ran = subprocess.run(["bash", "-euc", program], cwd=APP, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert "As inputs only scan may be read." in ran.stdout


def test_every_key_decides_a_sentence() -> None:
    told = [key for sentences in SECTIONS.values() for keys, _ in sentences(Policy()) for key in keys]
    assert set(told) == set(KEYS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-rank = 4", "At most 10,000 rounds of a run, 4 as the rank of an adapter"),
        ("offers = false", "A base that the server sends is refused"),
        ("min-cohort = 5", "at least 5 nodes take part."),
        ("[privacy]\nepsilon = 3", "spends at most an epsilon of 3"),
        ("[reports]\nscores = false", "The node refuses to score"),
        ("[columns]\npublish-labels = ['a', 'b', 'c']", "learns the label names a, b and c."),
        (
            "max-rounds = 0\nmax-rank = 0\nmax-steps = 0\nmax-seconds = 0",
            "Rounds, ranks, steps and seconds have no limit.",
        ),
    ],
)
def test_what_is_set_is_explained(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    [line] = [line for line in explained(path) if said in line]
    assert not line.endswith("(default)")


def test_exit_codes_and_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("")
    assert main(["policy", "check", str(path)]) == DONE
    assert "tunings: any. (default)" in capsys.readouterr().out
    path.write_text("max-rnk = 1\ntunings = ['lroa']")
    assert main(["policy", "check", str(path)]) == WRONG
    said = capsys.readouterr().err
    assert "2 problems" in said
    assert "did you mean 'max-rank'?" in said
    assert main(["policy", "check", str(tmp_path / "gone.toml")]) == WRONG
    assert "gone.toml" in capsys.readouterr().err
