"""The report of a run: numbers for people, all texts escaped, nothing of this machine; and in a real browser."""

import json
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from browser import Page, browser, needs_browser
from in_process import Outcome, federate

from server_app.results.amounts import lasted, ranges
from server_app.results.endings import lines_in, summary_of
from server_app.results.measure import measure_named
from server_app.results.page.settings import shown
from server_app.results.report import report
from thistledown.commands.results import watch as watching

BAD = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\u2028"
TOO_FAINT = """(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => channels(colour).slice(0, 3).map(v => v / (colour.startsWith("color(") ? 1 : 255))
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor, alpha = channels(colour)[3];
      if (alpha === undefined || alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const one of document.querySelectorAll("main *")) {
    if (![...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || !one.checkVisibility()) continue;
    if (["SCRIPT", "NOSCRIPT", "OPTION"].includes(one.tagName)) continue;
    const style = getComputedStyle(one);
    const pair = [light(one instanceof SVGElement ? style.fill : style.color), light(behind(one))].sort();
    const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    if (ratio < 4.5) found.push([one.tagName, one.textContent.slice(0, 30), ratio]);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Three rounds in which node 1 has a bad name and sends nothing good, and all nodes score."""

    def spoil(partition: int, kind: str, answer: Any) -> Any:
        if partition == 1 and kind == "train":
            raise ValueError(BAD)
        return answer

    options = {"num-server-rounds": 3, "evaluate": "both", "data.holdout": 0.2, "min-success-fraction": 0.2}
    configs = {1: {"name": "<b>clinic</b>"}}
    return federate(tmp_path_factory.mktemp("report"), options, spoil=spoil, node_configs=configs)


@pytest.fixture(scope="module")
def page(run: Outcome) -> str:
    return (run.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


class Outline(HTMLParser):
    """Headings, and elements that are not closed in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline" and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_a_page_is_whole_and_loads_nothing(page: str) -> None:
    outline = Outline(page)
    assert (outline.wrong, outline.open) == ([], [])
    assert outline.links == ["data:,"]
    assert outline.headings[1:] == [
        "Quality", "Nodes", "Split", "Who took part when", "Rounds", "Refused replies", "Use", "Configuration",
    ]  # fmt: skip


def test_texts_of_nodes_are_escaped(page: str, run: Outcome) -> None:
    assert page.count("<script") == 2  # the data of the chart, and the page's own
    assert "<img" not in page
    assert "<b>clinic" not in page
    assert "node &lt;b&gt;clinic&lt;/b&gt;: " in page
    data = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert "node <b>clinic</b>" in [series["name"] for series in json.loads(data)["series"]]


def test_equal_refusals_are_said_once(page: str) -> None:
    assert page.count("rounds 1 to 3, node &lt;b&gt;clinic") == 1


def test_curves_are_the_numbers_of_the_run(page: str, run: Outcome) -> None:
    data = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
    shared, validation, means, *nodes = data["series"]
    assert shared["accuracy"] == [line["accuracy"] for line in run.rounds]
    assert validation["accuracy"] == [line["server-validation-accuracy"] for line in run.rounds]
    assert means["accuracy"] == [line["nodes-accuracy"] for line in run.rounds]
    assert shared["bytes"][-1] == run.summary["bytes_up"] + run.summary["bytes_down"]
    assert shared["seconds"] == sorted(shared["seconds"])
    assert shared["train-loss"][0] is None
    assert {one["key"] for one in data["y"]} == {"accuracy", "loss", "train-loss", "aggregation-error"}
    assert data["marks"][0]["round"] == run.summary["best-round"]
    first = run.rounds[1]["evaluations"][0]
    assert (
        next(one for one in nodes if one["name"] == f"node {first['node']}")["accuracy"][1]
        == (first["metrics"]["accuracy"])
    )


def test_the_split_is_that_of_the_nodes(run: Outcome) -> None:
    split = json.loads((run.folder / "split.json").read_text())
    assert len(split["labels"]) == 10
    rows = {node["node"]: node["metrics"]["num-examples"] for node in run.rounds[1]["nodes"] if node["metrics"]}
    for name, count in rows.items():
        assert 0 < count <= sum(split["nodes"][name])  # they hold out some


def test_a_page_names_nothing_of_this_machine(page: str, run: Outcome) -> None:
    assert str(run.folder.parent) not in page
    assert run.folder.name in page
    own = run.summary | {"usage": [f"model = restored('{run.summary['folder']}/model/best', '/home/anna/bases/tiny')"]}
    page = report(run.folder, own, run.rounds)
    assert "anna" not in page
    assert f"restored(&#x27;{run.folder.name}/model/best&#x27;, &#x27;tiny&#x27;)" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/home/anna/data/notes.csv", "notes.csv"), ("~/models/tiny", "tiny"), ("org/model", "org/model"),
        (True, "true"),
        ("https://anna:secret@track.example/x", "https://track.example/x"), (0.5, "0.5"), ("", ""), ("2,4,8", "2,4,8"),
    ],
)  # fmt: skip
def test_settings_are_shown_without_places_and_passwords(value: object, said: str) -> None:
    assert shown(value) == said


def test_amounts_are_for_people() -> None:
    assert [lasted(seconds) for seconds in (0.04, 59.94, 125, 3725)] == ["0.0 s", "59.9 s", "2:05 min", "1:02 h"]
    assert ranges([1, 2, 3, 7, 9, 10]) == "1 to 3, 7, 9 to 10"


def test_a_run_before_its_first_round_has_a_page(run: Outcome, tmp_path: Path) -> None:
    nothing = {"rounds": 0, "base": None, "final": None, "best": None, "best-round": None, "ranks": {}}
    page = report(tmp_path, run.summary | nothing | {"status": "running"}, [], version="1")
    assert "The run goes on." in page
    assert "Nothing was measured." in page


def test_metrics_are_those_of_the_task_kind(run: Outcome, tmp_path: Path) -> None:
    """Preferences and language models both choose by the loss, and measure other things beside it."""
    (tmp_path / "config.toml").write_text("[task]\nkind = 'preference'\n")
    line = run.rounds[1] | {"loss": 0.5, "accuracy": 0.75, "margin": 1.5}
    page = report(tmp_path, run.summary | {"metric": "loss"}, [line | {"round": run.summary["best-round"]}])
    assert "reward accuracy" in page
    assert "reward margin" in page
    assert "perplexity" not in page


def test_an_unknown_metric_is_said() -> None:
    with pytest.raises(ValueError, match="no task kind chooses by 'beauty'"):
        measure_named("beauty")


# ------------------------------------------------------------------------------- in a browser
@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_page_fits_and_is_readable(chrome: Page, run: Outcome, width: int, dark: bool) -> None:
    chrome.open((run.folder / "report.html").as_uri(), width, dark=dark)
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
    assert chrome.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
    )
    assert chrome.run(TOO_FAINT) == []
    assert chrome.run("document.title") != "taken"
    assert chrome.problems == []


@needs_browser
@pytest.mark.slow
def test_faint_text_would_be_found(chrome: Page, run: Outcome) -> None:
    chrome.open((run.folder / "report.html").as_uri())
    chrome.run("document.querySelector('h1').style.color = '#949494'")
    assert [tag for tag, _, _ in chrome.run(TOO_FAINT)] == ["H1"]


@needs_browser
@pytest.mark.slow
def test_curves_are_chosen_and_read_by_keys(chrome: Page, run: Outcome) -> None:
    chrome.open((run.folder / "report.html").as_uri())
    count = "document.querySelectorAll('figure.chart polyline').length"
    assert chrome.run(count) == 1
    chrome.run("[...document.querySelectorAll('.legend button')].find(one => one.textContent == 'all nodes').click()")
    assert chrome.run(count) > 2
    chrome.run("document.querySelector('figure.chart > div svg').focus()")
    chrome.press("End")
    said = chrome.run("document.querySelector('[aria-live]').textContent")
    assert said.startswith(f"round 3shared model: {run.rounds[-1]['accuracy']:.3f}; ")
    chrome.press("ArrowLeft")
    assert chrome.run("document.querySelector('[aria-live]').textContent").startswith("round 2")
    chrome.run(
        "(() => { const choose = document.querySelectorAll('figure select')[1]; choose.value = 'bytes';"
        " choose.dispatchEvent(new Event('change')) })()"
    )
    assert "bytes sent" in chrome.run("document.querySelector('figure.chart > div svg').getAttribute('aria-label')")
    unnamed = "[...document.querySelectorAll('select, button')].filter(one => !(one.labels?.length || one.textContent))"
    assert chrome.run(f"{unnamed}.length") == 0
    assert chrome.problems == []


@pytest.fixture
def watched(run: Outcome, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a watch of the run, and an end to it."""
    said: list[str] = []
    servers: list[watching.ThreadingHTTPServer] = []
    serve = watching.ThreadingHTTPServer.serve_forever
    monkeypatch.setattr(
        watching.ThreadingHTTPServer, "serve_forever", lambda own: (servers.append(own), serve(own, 0.05))[1]
    )
    thread = threading.Thread(target=watching.watch, args=(run.folder.parent, 0, said.append))
    thread.start()
    while not servers:
        thread.join(0.01)
    yield said[0].split()[0]
    servers[0].shutdown()
    thread.join()


def test_a_watch_serves_the_page_to_this_machine_alone(watched: str, run: Outcome) -> None:
    with urlopen(watched) as answer:
        served = answer.read().decode()
    with urlopen(f"{watched}version") as answer:
        version = answer.read().decode()
    assert served == report(run.folder, summary_of(run.folder), lines_in(run.folder), version)
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(watched, headers={"Host": "evil.example:80"}))
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{watched}summary.json")


@needs_browser
@pytest.mark.slow
def test_a_watched_page_follows_the_run(chrome: Page, watched: str, run: Outcome) -> None:
    chrome.open(watched)
    chrome.run("document.querySelector('details').open = true")
    before = (run.folder / "summary.json").read_text()
    try:
        (run.folder / "summary.json").write_text(json.dumps(json.loads(before) | {"notices": [f"new {BAD}"]}))
        chrome.wait("document.body.textContent.includes('Notice: new </script>')")
    finally:
        (run.folder / "summary.json").write_text(before)
    assert chrome.run("document.querySelector('details').open")
    assert chrome.run("document.querySelectorAll('figure.chart polyline').length") == 1
    assert chrome.run("document.title") != "taken"
    assert chrome.problems == []
