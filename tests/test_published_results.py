"""The result pages that are in the repository follow from the numbers beside them."""

import json
import re
import statistics
from pathlib import Path

import pytest
from flwr.supercore.constant import MAX_FILE_BYTES

from benchmarks import pages, records
from benchmarks.derived import derive
from benchmarks.figures import Outcome, outcomes, paired
from thistledown.comparison.significance import verdict

FILES = sorted(records.RESULTS.glob("*.json"))
PLOT = re.compile(r"!\[[^]]*]\(([^)]+)\)")

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each
def test_a_page_is_what_its_numbers_give(path: Path) -> None:
    assert pages.page(derive(*records.read(path))) == path.with_suffix(".md").read_text(encoding="utf-8")


@each
def test_numbers_are_one_run_a_line_and_small_enough_to_publish(path: Path, tmp_path: Path) -> None:
    """Written again they are the same file, so there is no field in it but those that are read."""
    assert path.stat().st_size < MAX_FILE_BYTES
    runs = json.loads(path.read_text())["runs"]
    lines = [line.rstrip(",") for line in path.read_text().splitlines() if line.startswith('{"setting":')]
    assert [json.loads(line) for line in lines] == runs
    records.save(tmp_path / path.name, *records.read(path))
    assert (tmp_path / path.name).read_text() == path.read_text()


def test_every_plot_is_on_a_page_and_every_page_has_numbers() -> None:
    names = {path.stem for path in FILES}
    assert {path.stem for path in records.RESULTS.glob("*.md")} == names
    shown = {plot for name in names for plot in PLOT.findall((records.RESULTS / f"{name}.md").read_text())}
    assert shown == {path.name for path in records.RESULTS.glob("*.svg")}


# ---------------------------------------------------------------------- what README and docs say of them

DOCS = records.RESULTS.parent
FIGURE = re.compile(r"-?\.\d{3} ±\s+\.\d{3}")
OF_STUDIES = ("RBLA", "SA-FedLoRA", "Ferret", "FedPEFT", "Compression")  # sections of measured.md
# study, setting, method, what it is compared with, and the verdict that README or a page of docs/ gives
CLAIMS = [
    ("fedpeft", "minilm-iid", "lora", "full", "not separable"),
    ("fedpeft", "minilm-iid", "dora", "full", "not separable"),
    ("fedpeft", "minilm-iid", "ia3", "full", "not separable"),
    ("rbla", "paper", "rbla", "zero-pad", "ahead"),
    ("rbla", "minilm", "rbla", "zero-pad", "not separable"),
    ("rbla", "fashion-vit", "rbla", "zero-pad", "not separable"),
    ("rbla", "digits", "rbla", "zero-pad", "not separable"),
    ("ferret", "minilm", "ferret-4096-sgd", "fedavg", "not separable"),
    ("sa-fedlora", "minilm", "sa-fedlora-1", "fedavg", "not separable"),
    ("sa-fedlora", "fashion-vit", "sa-fedlora-1", "fedavg", "behind"),
]


def figures(text: str) -> set[str]:
    """Return the figures with a spread in a text."""
    return {" ".join(figure.split()) for figure in FIGURE.findall(text)}


def results_of(study: str, setting: str) -> dict[str, Outcome]:
    """Return the outcomes of a setting by method."""
    content = derive(*records.read(records.RESULTS / f"{study}.json"))
    [found] = [each for each in content["settings"] if each["name"] == setting]
    return {outcome.method: outcome for outcome in outcomes(content, found)}


def test_every_figure_with_a_spread_is_on_a_page_of_results() -> None:
    pages_of_studies = set().union(*(figures(path.read_text()) for path in records.RESULTS.glob("*.md")))
    measured = (DOCS / "measured.md").read_text()
    sections = {section.partition("\n")[0]: section for section in measured.split("\n## ")[1:]}
    for name in OF_STUDIES:
        assert figures(sections[name]) <= pages_of_studies, name
    everything = pages_of_studies | figures(measured)
    for path in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        assert figures(path.read_text()) <= everything, path.name


@pytest.mark.parametrize(("study", "setting", "method", "other", "said"), CLAIMS)
def test_a_claim_is_what_a_paired_test_carries(study: str, setting: str, method: str, other: str, said: str) -> None:
    found = results_of(study, setting)
    assert verdict(paired(found[method], found[other]), found[method].lowest) == said


def sizes_of(path: Path) -> list[dict[str, str]]:
    """Return, for every table of a page with 1/N in a column named bytes, the share by the first word of a row."""
    tables: list[dict[str, str]] = []
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "bytes" in cells:
            column, found = cells.index("bytes"), dict[str, str]()
            tables.append(found)
        elif line.startswith("|") and tables and len(cells) > column and cells[column].startswith("1/"):
            found[cells[0].strip("`").split(",")[0].lower()] = cells[column]
    return [table for table in tables if table]


SITUATION = re.compile(r"\[`benchmarks\.(\w+) --only ([\w-]+)`\]\(results/([\w-]+)\.md#([\w-]+)\)")


def situations() -> list[list[str]]:
    """Return the rows of the table of situations: its head first."""
    section = (DOCS / "choose.md").read_text().split("### By situation\n")[1].split("\n#")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize("row", situations()[1:], ids=lambda row: row[0])
def test_a_situation_has_what_was_measured_in_it_and_no_more(row: list[str]) -> None:
    found = SITUATION.fullmatch(row[-1])
    assert found
    study, setting, page, section = found.groups()
    assert (study, setting) == (page.replace("-", "_"), section)
    [declared] = [one for one in records.read(records.RESULTS / f"{page}.json")[0].settings if one.name == setting]
    measured = results_of(page, setting)
    for pair, cell in zip(situations()[0][1:-1], row[1:-1], strict=True):
        wanted = pair.replace("`", "").split(", ")
        own = [one.name for one in declared.methods if [one.options["strategy"], one.options["tuning"]] == wanted]
        scores = [measured[name].values("last-5") for name in own if len(measured[name].runs) > 1]
        there = {f"{statistics.mean(one):.3f} ± {statistics.stdev(one):.3f}".replace("0.", ".") for one in scores}
        assert cell in (there or {"not measured"}), (row[0], pair)


SPELT = {
    "normalisation": "norm",
    "prefixes": "prefix",
    "adapters": "adapter",
    "biases": "bias",
    "prompts": "prompt",
    "head alone": "head",
}


@pytest.mark.parametrize(
    ("page", "settings"), [("choose.md", ["minilm-iid"]), ("measured.md", ["minilm-iid", "fashion-vit-iid"])]
)
def test_sizes_of_updates_are_those_of_the_first_setting(page: str, settings: list[str]) -> None:
    for setting, table in zip(settings, sizes_of(DOCS / page), strict=True):
        found = results_of("fedpeft", setting)
        sent = {method: one.total("bytes_up") + one.total("bytes_down") for method, one in found.items()}
        assert table == {name: f"1/{sent['full'] / sent[SPELT.get(name, name)]:,.0f}" for name in table}


def test_rbla_is_behind_zero_padding_in_all_nine_runs_on_skewed_rows() -> None:
    for setting in ("digits", "minilm", "fashion-vit"):
        found = results_of("rbla", setting)
        gaps = paired(found["rbla"], found["zero-pad"])
        assert len(gaps) == 3
        assert max(gaps) < 0
