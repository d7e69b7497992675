"""docs/threats.md names a test for every line of its tables, and each of these tests is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "threats.md"
NAMED = re.compile(r"`((?:deployment/)?test_\w+\.py)`")


def test_every_line_has_a_test_that_is_there() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    lines = [row for row in rows if not row.startswith("| threat |")]
    assert len(lines) > 40
    assert [line for line in lines if not NAMED.search(line)] == []
    named = {name for line in lines for name in NAMED.findall(line)}
    assert sorted(name for name in named if not (TESTS / name).is_file()) == []
