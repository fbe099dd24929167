"""An upstream at fault for each test, and the page of what was seen."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fault_table import page, sections
from faulty_upstream import FaultyUpstream, faulty_upstream
from running_gateway import Gateway, running_gateway, settings_of

from penstock.tables import Route

HERE = Path(__file__).parent
# By test: whether all of it passed.
_outcomes: dict[str, bool] = {}


@pytest_asyncio.fixture(loop_scope="session")
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def other() -> AsyncIterator[FaultyUpstream]:
    """What is asked when `upstream` fails."""
    async with faulty_upstream() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(upstream: FaultyUpstream, other: FaultyUpstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Before both, with a cache; the model `up/m` is asked of `upstream` alone, `both` of `other` too when that fails."""
    upstreams = {"up": settings_of(upstream.url), "other": settings_of(other.url)}
    routes = {"both": Route(targets=("up/m", "other/m"))}
    async with running_gateway(upstreams, routes=routes, cache_path=tmp_path) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-faults", metavar="PAGE", help="write the table of faults, if every row is right"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _outcomes.setdefault(report.nodeid, True)
    if not report.passed:
        _outcomes[report.nodeid] = False


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--write-faults", None)
    if target is None:
        return
    wrong = [
        row.test for section in sections(HERE) for row in section.rows if not _is_right(row.file, row.test)
    ]
    if wrong:
        raise pytest.UsageError(f"{target} is not written; wrong, or not run: {', '.join(wrong)}")
    Path(target).write_text(page(HERE), encoding="utf-8")


def _is_right(file: str, test: str) -> bool:
    """All cases of a row have run and passed."""
    prefix = f"{file}::{test}"
    outcomes = [right for node, right in _outcomes.items() if node.endswith(prefix) or f"{prefix}[" in node]
    return bool(outcomes) and all(outcomes)
