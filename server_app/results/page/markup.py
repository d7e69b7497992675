"""HTML from values. A text is escaped unless it is an `Html`, so that no name or message of a node becomes markup."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """A text that is HTML already; only this package makes it."""

    __slots__ = ()


def text(value: str | Html) -> Html:
    """Return a value as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(name: str, *content: str | Html, **attributes: str) -> Html:
    """Return an element. In an attribute's name an underscore stands for a dash, and one at its end is dropped; empty
    attributes are left out."""
    named = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items() if value
    )
    return Html(f"<{name}{''.join(named)}>{''.join(map(text, content))}</{name}>")


def joined(parts: Iterable[str | Html]) -> Html:
    """Return parts one after another."""
    return Html("".join(map(text, parts)))


def section(title: str, *content: str | Html) -> Html:
    """Return a section with a heading; nothing if it has no content."""
    return element("section", element("h2", title), *content) if any(content) else Html()


def table(head: Sequence[str | Html], rows: Iterable[Sequence[str | Html]], about: str, kind: str = "") -> Html:
    """Return a table in a box that scrolls sideways; the first cell of a row is its heading. `about` says what it shows
    to those who cannot see it. A cell that is a `td` element already is taken as it is."""
    top = joined(element("th", cell, scope="col") for cell in head)
    body = joined(element("tr", element("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows)
    whole = element("table", element("thead", element("tr", top)), element("tbody", body), class_=kind)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=about)


def _cell(cell: str | Html) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else element("td", cell)


def listed(items: Sequence[str | Html], kind: str = "") -> Html:
    """Return a list; nothing without items."""
    return element("ul", *(element("li", item) for item in items), class_=kind) if items else Html()


def folded(title: str, *content: str | Html, open: bool = False) -> Html:
    """Return what a reader may unfold."""
    inside = joined([element("summary", title), *content])
    return Html(f"<details{' open' if open else ''}>{inside}</details>")
