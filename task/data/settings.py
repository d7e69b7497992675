"""The settings of data: columns of inputs, the parts that rows are cut into, their division, the length of texts."""

from dataclasses import dataclass

from task.data.partitioners import registry as partitioners
from task.data.partitioners.base import Partitioner
from task.schema import chosen, option

EMBEDDED_DATA = "digits"
MANY = 2**20  # an upper bound for counts: no machine has as many, and no message may ask for more
TEMPLATES = ("auto", "chat", "plain")  # values of `data.template` that name no template of ours
TEMPLATE_FILES = (".jinja", ".jinja2", ".j2")
MERGED = "merged"  # value of `data.system-turn`


@dataclass(frozen=True)
class Data:
    name: str = option(
        EMBEDDED_DATA,
        doc='a hub id, a folder, a file (csv, tsv, txt, json, jsonl, parquet, arrow, xlsx, npz, images), or "digits"',
    )
    subset: str = option("", doc="configuration name of a hub dataset")
    train_split: str = option("train", doc="split that is divided among simulated nodes")
    validation_split: str = option(
        "", doc="split that chooses the best round; empty: cut from train by validation-fraction"
    )
    test_split: str = option("test", doc="split that is reported; empty: cut from train by test-fraction")
    validation_fraction: float = option(
        0.1, low=0.0, high=0.9, doc="of the train split, where there is no validation split"
    )
    test_fraction: float = option(0.1, low=0.0, high=0.9, doc="of the train split, where there is no test split")
    train_rows: int = option(0, low=0, doc="use only this many rows, drawn at random; 0: all")
    validation_rows: int = option(0, low=0, doc="likewise")
    test_rows: int = option(0, low=0, doc="likewise")
    image_column: str = option("image", doc="column with images: bytes, paths or arrays")
    text_column: str = option("text", doc="column with text")
    instruction_column: str = option(
        "instruction", doc="language models: column with what is asked; empty: no prompts, outputs are learned whole"
    )
    input_column: str = option(
        "input", doc="language models: column with what an instruction is about; may be absent, or empty in a row"
    )
    output_column: str = option("output", doc="language models: column with what the model shall write")
    messages_column: str = option(
        "", doc="causal-lm: column with conversations, lists of turns; empty: rows are not conversations"
    )
    prompt_column: str = option(
        "", doc="language models: column with prompts, texts or lists of turns, in place of instructions and inputs"
    )
    completion_column: str = option("", doc="language models: column with their completions, texts or lists of turns")
    chosen_column: str = option("chosen", doc="preference: column with the better answers, texts or lists of turns")
    rejected_column: str = option("rejected", doc="preference: column with the worse answers")
    template: str = option(
        "auto",
        doc="causal-lm: the tokenizer's (chat), ours (plain), chat where there is one (auto), a name, or a Jinja file",
    )
    system_turn: str = option(
        "own",
        choices=("own", MERGED),
        doc="causal-lm: the template gets a system turn (own), or the first user turn begins with its text (merged)",
    )
    date: str = option(
        "", doc='causal-lm: the date for chat templates, such as "2026-01-31"; empty: when the run starts'
    )
    label_column: str = option(
        "label",
        doc="column with labels: integers, strings, or what task.kind has for them; causal-lm: categories to split by",
    )
    delimiter: str = option("", doc='of csv files, such as ";" or "tab"; empty: detected')
    encoding: str = option(
        "", doc='of files of text, such as "cp1252"; empty: by their first bytes, UTF-8, or Windows-1252, which is said'
    )
    skip_empty: bool = option(True, doc="leave out rows without a text; false: refuse them")
    labels: tuple[str, ...] = option(
        (), separator="|", doc="label names in order, separated by |; empty: read from the data"
    )
    max_length: int = option(128, low=2, high=MANY, doc="tokens of a text that are kept; causal-lm: of a whole row")
    max_completion_length: int = option(
        0, low=0, high=MANY, doc="language models: tokens of it that a completion may take; 0: half of them"
    )
    holdout: float = option(
        0.1, low=0.0, high=0.9, doc="share of its rows that a node keeps for evaluation, where `evaluate` asks nodes"
    )
    partitioner: Partitioner = chosen(
        partitioners,
        "dirichlet",
        doc="how rows are divided: the name of a file in task/data/partitioners; none: nodes have a `data-path`",
    )
    id_column: str = option("", doc="column that names the natural client of a row")


def is_template(text: str) -> bool:
    """Return whether a value of `data.template` is the text of a template, not a name."""
    return "{{" in text or "{%" in text


def is_template_file(text: str) -> bool:
    """Return whether a value of `data.template` is the name of a file."""
    return not is_template(text) and text.endswith(TEMPLATE_FILES)
