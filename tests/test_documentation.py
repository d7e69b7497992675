"""The documentation: every command block is run or says why not, every link leads somewhere, every key is explained.

What happens to a block is decided by its language, or by an HTML comment in the line above it:

    <!-- not run: reason -->            nobody runs it
    <!-- run by tests/test_x.py -->     another test runs it, which names the page
    <!-- run in process: reason -->     its `main` gets a grid in this process, as a ServerApp's does
    <!-- file: articles.csv -->         its rows, many times over, are the file of this name that blocks read
    <!-- sizes: key=value ... -->       it is run with these keys on top, so that it ends soon; {encoder}, {decoder},
                                        {writer} and {vision} are small models of that kind
    <!-- with: this = that -->          it is run with that in place of this

All blocks are run in this process, and so is the federation of `thistledown run`: a process for each command, with a
SuperLink and Ray, would take ten times as long. test_command.py, test_default_run.py and test_new_user.py have those.

A comment that starts with `<!-- blocks:` at the top of a page is that of all blocks without one.
"""

import inspect
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import InProcessGrid
from PIL import Image

import client_app
import thistledown
from server_app.config import keys
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.wrapper import Wrapper
from task.data.partitioners.base import Partitioner
from task.data.sources.base import Source
from task.kinds.base import Kind
from thistledown.key_descriptions import accepted, default_of
from thistledown.main import main
from thistledown.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("bash", "sh", "console")
RUN = (*SHELL, "python", "toml")  # languages of command blocks
OTHER = ("text", "csv", "json")  # what is shown, or written to a file
FENCE = re.compile(r"^```(\S*)$")
MARK = re.compile(r"^<!-- (blocks: )?(not run|run by|run in process|file|sizes|with):? (.*) -->$")
COPIES = 300  # of the rows that a page shows, in the file that its blocks read
QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\s#.*""")  # words in quotes, and comments
SIZED = ("new", "run", "check")  # commands that take keys by -c


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    kind: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    default, above, start, language = ("", ""), ("", ""), None, ""
    for number, line in enumerate(lines, 1):
        if start is not None:
            if line == "```":
                text = "\n".join(lines[start : number - 1]) + "\n"
                yield Block(page, start, language, text, *(above if above[0] else default))
                start, above = None, ("", "")
        elif fence := FENCE.match(line):
            start, language = number, fence[1]
        elif mark := MARK.match(line):
            if mark[1]:
                default = (mark[2], mark[3])
            else:
                above = (mark[2], mark[3])
        elif line.strip():
            above = ("", "")


ALL = [block for page in PAGES for block in blocks(page)]
OURS = [block for block in ALL if block.language in RUN and block.kind in ("", "sizes", "with")]


# ------------------------------------------------------------------------------- what a block is
def test_every_block_has_a_language_and_a_command_block_is_run_or_says_why_not() -> None:
    assert [str(block) for block in ALL if block.language not in RUN + OTHER] == []
    assert [str(block) for block in ALL if block.kind == "not run" and len(block.value.split()) < 3] == []
    assert {block.page.name for block in OURS} >= {"README.md", "quickstart.md", "choose.md"}


@pytest.mark.parametrize("block", [block for block in ALL if block.kind == "run by"], ids=str)
def test_the_test_that_runs_a_block_reads_its_page(block: Block) -> None:
    assert block.page.name in (ROOT / block.value.split()[0]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in ALL if block.kind == "run in process"], ids=str)
def test_a_server_app_runs(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    names["main"](InProcessGrid(client_app.app, 2), None)
    assert "classifier.weight" in capsys.readouterr().out


@pytest.mark.parametrize("block", [block for block in OURS if block.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in OURS if block.language in SHELL], ids=str)
def test_its_keys_are_keys(block: Block, tmp_path: Path) -> None:
    """Presets and -c of `thistledown run` and `check`, as the command itself reads them."""
    for command in re.findall(r"^thistledown (?:run|check)\b.*", block.text.replace("\\\n", ""), re.MULTILINE):
        if "resume=" not in command and ".toml" not in command:  # the page makes such a preset
            overrides = re.findall(r'-c "([^"]*)"', command)
            preset = re.match(r"thistledown \w+ ([a-z][\w-]*)", command)
            Settings.read(None, preset[1] if preset else None, overrides, tmp_path)


# ------------------------------------------------------------------------------- running them
@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Small random models whose tokenizer has read all pages, and the images that pages speak of."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([page.read_text(encoding="utf-8") for page in PAGES], trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 512, "max_position_embeddings": 256, "pad_token_id": 0, **sizes}
    small = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    made = {
        "encoder": (BertForSequenceClassification(BertConfig(**text)), words),
        "decoder": (LlamaForCausalLM(LlamaConfig(bos_token_id=1, eos_token_id=2, **text)), words),
        "writer": (T5ForConditionalGeneration(T5Config(vocab_size=512, **small)), words),
        "vision": (
            ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)),
            ViTImageProcessor(size={"height": 16, "width": 16}),
        ),
    }
    for name, (model, reader) in made.items():
        model.save_pretrained(tmp_path / name)
        reader.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in made}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with scans and the files that pages show."""
    random = np.random.default_rng(0)
    for label in ("healthy", "ill"):
        scans = tmp_path / "work" / "scans" / label
        scans.mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 256, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(scans / f"{number}.png")
    for block in [block for block in ALL if block.kind == "file"]:
        head, rows = block.text.split("\n", 1) if block.language == "csv" else ("", block.text)
        (tmp_path / "work" / block.value).write_text(f"{head}\n{rows * COPIES}".lstrip("\n"), encoding="utf-8")
    return tmp_path / "work"


def in_this_process(
    settings: Settings, say: Callable[[str], None], *, verbose: bool = False, ray_address: str = ""
) -> bool:
    """What `thistledown run` does, without Ray and SuperLink."""
    values = dict(settings.config.flat)
    strategy, wrappers, outputs = (str(values.pop(key, "")) for key in ("strategy", "wrappers", "output-dir"))
    outcome = thistledown.simulate(strategy, wrappers=wrappers, output_dir=outputs, **values)
    return outcome.summary["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in OURS}), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_their_order(
    page: Path, place: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("thistledown.commands.run.run", in_this_process)
    for hub in ("huggingface_hub.constants", "datasets.config"):  # nothing is downloaded
        monkeypatch.setattr(f"{hub}.HF_HUB_OFFLINE", True)
    for block in [block for block in OURS if block.page == page]:
        print(block, block.text)  # what a failure shows
        execute(block, models)
        capfd.readouterr()


def execute(block: Block, models: dict[str, str]) -> None:
    """Run a block in the current folder. Raises if it fails, or is more than commands with their arguments."""
    value = block.value.format(**models)
    text = block.text
    if block.kind == "with":
        this, that = value.split(" = ")
        assert this in text
        text = text.replace(this, that)
    if block.language == "python":
        exec(compile(text, str(block), "exec"), {"__name__": "__main__"})
    elif block.language == "toml":
        Path("preset.toml").write_text(text, encoding="utf-8")
        assert main(["check", "preset.toml"]) == 0
    else:
        for command in commands(text):
            sized = ["-c", value] if block.kind == "sizes" and command[1] in SIZED else []
            if command[0] == "thistledown":
                assert main([*command[1:], *sized]) == 0
            else:
                subprocess.run(command, check=True, timeout=60)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, which must leave nothing else to a shell."""
    for line in text.replace("\\\n", "").splitlines():
        bare = QUOTED.sub("", f" {line}")
        assert not re.search(r"[|&;<>(){}*?~\[\]]", bare), line
        assert not re.search(r"[$`]", line), line
        if words := shlex.split(line, comments=True):
            yield words


@pytest.mark.parametrize(
    "words", ["a | b", "a 2>&1", "a && b", "a $HOME", "a 'b `c`'", "a ~/b", "a *.csv", "a << END", "a {b,c}"]
)
def test_what_only_a_shell_understands_is_refused(words: str) -> None:
    with pytest.raises(AssertionError):
        list(commands(f"{words}\n"))


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("thistledown check -c 'no-such-key=1'", AssertionError),
        ("thistledown status no-such-folder", AssertionError),
        ("thistledown no-such-command", SystemExit),
        ("ls no-such-file", subprocess.CalledProcessError),
        ("no-such-program", FileNotFoundError),
    ],
)
def test_a_command_that_fails_is_noticed(
    command: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        execute(Block(ROOT / "README.md", 1, "bash", f"{command}\n"), {})


# ------------------------------------------------------------------------------- links
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs both write them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Beside the site's own check: README and CONTRIBUTING, and pages as a clone shows them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith(("http:", "https:")) or target.stem in ("contributing", "changelog"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    folders = "task|strategies|server_app|client_app|thistledown|tests|deploy|benchmarks|presets|examples|docs"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    shown = re.findall(r"^# ([\w/]+\.py)$", page.read_text(encoding="utf-8"), re.M)  # files of an example
    assert [name for name in named if not (ROOT / name).exists() and name not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_commands_and_targets_that_a_page_names_are_there(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    groups = {key.split(".")[0] for key in keys() if "." in key}
    named = re.findall(rf"`((?:{'|'.join(groups)})\.[a-z][a-z-]*)(?: = [^`]*|=[^`]*)?`", text)
    assert [key for key in named if key not in keys()] == []
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(re.findall(r"`thistledown ([a-z]+)", text)) <= set(capsys.readouterr().out.split())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)


@pytest.mark.parametrize(
    ("kind", "heading"),
    [
        (Algorithm, "## Add a strategy"),
        (Wrapper, "## Add a wrapper"),
        (Kind, "## Add a task kind"),
        (Source, "## Add a data source"),
        (Partitioner, "## Add a partitioner"),
    ],
)
def test_contributing_has_every_method_and_declaration(kind: type, heading: str) -> None:
    section = re.split(r"\n(?=## )", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    (text,) = [part for part in section if part.startswith(heading)]
    named = dict(re.findall(r"^\| `(\w+)(\(.*?\))?` \|", text, re.M))
    assert named.keys() == {name for name in vars(kind) if name[0] != "_"} - {"name"}
    for name, arguments in named.items():
        own = getattr(kind, name)
        if callable(own):
            given = list(inspect.signature(own).parameters)[0 if inspect.ismethod(own) else 1 :]
            assert arguments == f"({', '.join(given)})", name


@pytest.mark.parametrize("page", ["README.md", "docs/choose.md", "docs/results.md"])
def test_figures_are_those_of_the_pages_of_results(page: str) -> None:
    """A mean with its spread is quoted from a page that is computed from runs, or from the one of what was measured."""
    figure = re.compile(r"\.\d{2,3} ± \.\d{2,3}")
    sources = [ROOT / "docs" / "measured.md", *(ROOT / "docs" / "results").glob("*.md")]
    there = {found for path in sources for found in figure.findall(path.read_text(encoding="utf-8"))}
    assert set(figure.findall((ROOT / page).read_text(encoding="utf-8"))) <= there


# ------------------------------------------------------------------------------- keys
def test_the_page_of_keys_has_every_key_with_default_range_and_meaning() -> None:
    generate = pytest.importorskip("docs.generate", reason="mkdocs is not installed")
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", generate.key_tables(keys()), re.M))
    assert rows.keys() == keys().keys()
    for key, option in keys().items():
        default, accepts, meaning = rows[key].split(" | ")
        assert default == f"`{default_of(option)}`", key
        assert accepts.replace(r"\|", "|") == accepted(key, option, "`"), key
        assert meaning, key
        for bound in (option.low, option.high):
            assert bound is None or option.choices or f"{bound:,.12g}" in accepts, key


def test_the_readme_is_short() -> None:
    text = re.sub(r"\A---\n.*?^---\n", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(text.strip().splitlines()) <= 130
