"""The frame of a page: one HTML file that loads nothing and runs no script but its own."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from server_app.results.page.markup import Html, element, joined, text
from server_app.results.page.script import SCRIPT
from server_app.results.page.style import STYLE

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; connect-src 'self'; img-src data:"
)


def page(title: str, content: Sequence[Html], version: str = "") -> str:
    """Return a page. `version`: of a page that is served while its run goes on, and asks for newer ones."""
    said = "Live: this page follows the run." if version else ""
    live = element("p", said, id="live", class_="soft", role="status") if version else Html()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head>'
        f'<body data-version="{text(version)}"><main>{joined(content)}</main>{live}<script>{SCRIPT}</script></body>'
        "</html>\n"
    )


def chart(name: str, caption: str, data: dict[str, Any]) -> Html:
    """Return a chart; `name` is its id on the page. See `script.py` for the data."""
    written = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    inside = f'<figcaption>{text(caption)}</figcaption><script type="application/json">{written}</script>'
    without = "<noscript><p>Curves need JavaScript. The tables have the same numbers.</p></noscript>"
    return Html(f'<figure class="chart" id="{text(name)}">{inside}{without}</figure>')


def cards(figures: dict[str, tuple[str, str]]) -> Html:
    """Return the most important figures: a value and a remark by title."""
    return element(
        "dl",
        *(
            element("div", element("dt", title), element("dd", value, element("small", remark) if remark else ""))
            for title, (value, remark) in figures.items()
        ),
        class_="cards",
    )
