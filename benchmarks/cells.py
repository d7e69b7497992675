"""Numbers and tables of a page, in Markdown."""

import math
import statistics
from collections.abc import Iterable


def spread(values: list[float]) -> str:
    """Return the mean and the standard deviation; of one value, itself."""
    mean = share(statistics.mean(values))
    return f"{mean} ± {share(statistics.stdev(values))}" if len(values) > 1 else mean


def share(value: float, digits: int = 3) -> str:
    """Return .834 for 0.834."""
    return "?" if math.isnan(value) else f"{value:.{digits}f}".removeprefix("0")


def signed(value: float) -> str:
    """Return the value with its sign."""
    return ("-" if value < 0 else "+") + share(abs(value))


def bold(text: str, really: bool) -> str:
    """Return the text in bold, if it really is to be."""
    return f"**{text}**" if really else text


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
