"""The published table is that of these tests."""

from pathlib import Path

from fault_table import page

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "faults.md"


def test_the_page_has_the_rows_of_the_tests() -> None:
    """Renewed by `pytest tests/proxy/faults --write-faults docs/faults.md`."""
    assert PAGE.read_text(encoding="utf-8") == page(HERE)
