"""Files of many requests, gone through with many in flight."""

import asyncio
from pathlib import Path

import pytest

from penstock.cli_jsonl import work_through


def write_to_a_full_disk() -> None:
    Path("/dev/full").write_text("x")


def test_what_ends_the_work_is_raised_as_it_is() -> None:
    """By one of several, on a disk that is full: whoever catches it looks for the system's own error."""

    async def answer(line: int) -> bool:
        await asyncio.sleep(0)
        if line == 3:
            write_to_a_full_disk()
        return True

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(work_through(range(10), answer, concurrency=4))
