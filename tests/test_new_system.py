"""docs/new_system.md tells the size of what it names. test_documents checks its commands, test_captions_end_to_end its Python."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(r"^\| [^|]+ \| `([^`]+)` \| (\d+) \|$", (ROOT / "docs" / "new_system.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("file", "lines"), ROWS)
def test_the_table_tells_the_lines_of_each_file(file, lines):
    """To a tenth, so that a comment changes no document."""
    assert len((ROOT / file).read_text().splitlines()) == pytest.approx(int(lines), rel=0.1)


def test_the_table_has_a_row_for_each_part():
    assert len(ROWS) == 13
