"""Bytes, times and counts as people read them."""

from collections.abc import Sequence


def human(count: float) -> str:
    """Format a number of bytes: 1.2 kB, 3.4 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds: 2:05."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def lasted(seconds: float) -> str:
    """Format how long something took: 3.2 s, 2:05 min, 1:02 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{clock(whole)} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"


def counted(count: int, what: str) -> str:
    """Return a count with its noun: `1 round`, `2,000 rounds`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending whole numbers with neighbours joined: 1 to 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
