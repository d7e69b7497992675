"""The parts of the site that are made when it is built: the table of keys, and the pages that live outside docs/.

mkdocs calls the two functions `on_files` and `on_page_markdown`. Nothing is downloaded.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from server_app.config import keys
from task.schema import Schema
from thistledown.key_descriptions import accepted, default_of

ROOT = Path(__file__).parent.parent
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # page of the site: file of the clone
MARKER = "<!-- keys -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/, and the example files that pages link to."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for folder in (ROOT / "deploy", ROOT / "examples"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            files.append(File.generated(config, f"files/{path.relative_to(folder)}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links of the clone turned into links of the site, and with the table of keys."""
    if page.file.src_uri in OUTSIDE:
        return markdown.replace("](docs/", "](")
    markdown = markdown.replace("](../deploy/", "](files/").replace("](../examples/", "](files/")
    for name, source in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    return markdown.replace(MARKER, key_tables(keys()))


def key_tables(schema: Schema) -> str:
    """Return a heading and a table for every group of keys: key, default, what it accepts, what it means."""
    groups: dict[str, list[str]] = {}
    for key in schema:
        group = key.rpartition(".")[0]
        option, marked = schema[key], accepted(key, schema[key], "`")
        row = f"| `{key}` | `{default_of(option)}` | {_cell(marked)} | {_cell(option.doc)} |"
        groups.setdefault(group, []).append(row)
    head = "| key | default | accepts | meaning |\n|---|---|---|---|\n"
    return "\n\n".join(f"### {group or 'the run'}\n\n{head}" + "\n".join(rows) for group, rows in groups.items())


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
