"""The parts of the site that are made when it is built: the table of keys, and the pages that live outside docs/.

mkdocs calls the two functions `on_files` and `on_page_markdown`. Nothing is downloaded.
"""

import typing
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import strategies
from server_app.callbacks import tracker
from server_app.config import keys
from task.schema import Option, Schema

ROOT = Path(__file__).parent.parent
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # page of the site: file of the clone
EXTENSIONS = {  # keys that name files, and what finds these
    "strategy": strategies.names,
    "wrappers": strategies.wrapper_names,
    "trackers": tracker.names,
    "server-optimizer": strategies.optimizer_names,
}
MARKER = "<!-- keys -->"
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/, and the example files that pages link to."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "deploy").iterdir()):
        files.append(File.generated(config, f"files/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links of the clone turned into links of the site, and with the table of keys."""
    if page.file.src_uri in OUTSIDE:
        return markdown.replace("](docs/", "](")
    markdown = markdown.replace("](../deploy/", "](files/")
    for name, source in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    return markdown.replace(MARKER, key_tables(keys()))


def key_tables(schema: Schema) -> str:
    """Return a heading and a table for every group of keys: key, default, what it accepts, what it means."""
    groups: dict[str, list[str]] = {}
    for key in schema:
        group = key.rpartition(".")[0]
        row = f"| `{key}` | {shown_default(schema[key])} | {accepted(key, schema[key])} | {_cell(schema[key].doc)} |"
        groups.setdefault(group, []).append(row)
    head = "| key | default | accepts | meaning |\n|---|---|---|---|\n"
    return "\n\n".join(f"### {group or 'the run'}\n\n{head}" + "\n".join(rows) for group, rows in groups.items())


def shown_default(option: Option) -> str:
    """Return the default as TOML writes it."""
    value = option.flat(option.default)
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`"


def accepted(key: str, option: Option) -> str:
    """Return the type and the range of an option in words."""
    if names := option.choices or EXTENSIONS.get(key, list)():
        several = "several of " if typing.get_origin(option.type) is tuple else ""
        return several + ", ".join(f"`{name}`" for name in names)
    is_list = typing.get_origin(option.type) is tuple
    word = WORDS[typing.get_args(option.type)[0] if is_list else option.type]
    if is_list:
        word = f"{word} list, separated by `{_cell(option.separator)}`"
    if option.empty:
        word += f", or `{option.empty}`"
    return word + _range(option)


def _range(option: Option) -> str:
    low, high = option.low, option.high
    if low is not None and high is not None:
        return f", {low:,.12g} to {high:,.12g}"
    if low is not None:
        return f", at least {low:,.12g}"
    return "" if high is None else f", at most {high:,.12g}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
