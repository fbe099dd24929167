"""The fault matrix as a page: a row per `@pytest.mark.fault("what happens", "what is seen")`, read from the tests' text."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEAD = """\
# What goes wrong, and what is seen then

Each row is a test on the production runner and real sockets, against an upstream that breaks the rules it is told to break.
This page is written by `pytest tests/proxy/faults --write-faults docs/faults.md`, and only when every row is right.
"""


@dataclass(frozen=True)
class Row:
    """`test`: the function's name; `file`: its file's."""

    happens: str
    seen: str
    test: str
    file: str


@dataclass(frozen=True)
class Section:
    title: str
    rows: tuple[Row, ...]


def sections(folder: Path) -> list[Section]:
    """By file, in the order of their names; titles are what the docstrings say first."""
    found = []
    for file in sorted(folder.glob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        rows = tuple(row for node in tree.body for row in _rows(node, file.name))
        if rows:
            title = (ast.get_docstring(tree) or file.stem).splitlines()[0].rstrip(".")
            found.append(Section(title, rows))
    return found


def page(folder: Path) -> str:
    parts = [HEAD]
    for section in sections(folder):
        lines = [f"## {section.title}", "", "| What happens | What is seen | Shown by |", "|---|---|---|"]
        lines += [f"| {row.happens} | {row.seen} | `{row.test}` |" for row in section.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows(node: ast.stmt, file: str) -> Iterator[Row]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for decorator in node.decorator_list:
            for call in ast.walk(decorator):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                    happens, seen = (ast.literal_eval(argument) for argument in call.args)
                    yield Row(happens, seen, node.name, file)
