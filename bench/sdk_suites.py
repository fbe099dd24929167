"""OpenAI's and Anthropic's own test suites of their Python SDKs, against a running Penstock with the built-in model:

    python bench/sdk_suites.py                      both
    python bench/sdk_suites.py --sdk openai

Their tests come with the source packages on PyPI, and run unchanged in an environment of their own under .work/peers,
against `penstock serve --unsupported drop`, which takes any model's name. Tests of endpoints that Penstock has not are left
out and counted. Prints and writes a table of files, and the reason for each failure.
"""

import argparse
import collections
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).parent
sys.path.insert(1, str(BENCH / "peers"))

from environments import SCRATCH, Environment  # noqa: E402
from processes import Process  # noqa: E402

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One SDK's tests.

    Attributes:
        extras: of the package, that the tests use.
        needs: packages of the tests.
        base: what the SDK's base URL has after the server's address.
        files: below tests/api_resources, to those of their tests' names that are of endpoints that Penstock has not.
    """

    package: str
    version: str
    extras: str
    needs: tuple[str, ...]
    base: str
    files: dict[str, tuple[str, ...]]

    @property
    def environment(self) -> Environment:
        wanted = f"{self.package}[{self.extras}]=={self.version}"
        return Environment(f"sdk-{self.package}", (wanted, *PYTEST, *self.needs))

    def source(self) -> Path:
        """The unpacked source package; fetched if it is not there."""
        folder = SCRATCH / "sdk"
        unpacked = folder / f"{self.package}-{self.version}"
        if not unpacked.is_dir():
            self.environment.pip(
                *("download", "--no-deps", "--no-binary", self.package, "--dest", folder),
                f"{self.package}=={self.version}",
            )
            with tarfile.open(folder / f"{unpacked.name}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
        return unpacked


PYTEST = ("pytest==9.2.0", "pytest-asyncio", "pytest-xdist", "rich", "inline-snapshot")
SUITES = {
    "openai": Suite(
        package="openai",
        version="3.57.0",
        extras="aiohttp,realtime,datalib,bedrock",
        needs=(),
        base="/v1",
        files={
            # Nothing is stored, so that nothing can be fetched, changed, listed or deleted.
            "chat/test_completions.py": ("retrieve", "update", "list", "delete"),
            "test_completions.py": (),
            "test_embeddings.py": (),
            "test_models.py": ("delete",),
            "test_responses.py": ("retrieve", "delete", "cancel", "compact"),
        },
    ),
    "anthropic": Suite(
        package="anthropic",
        version="2.14.0",
        extras="aiohttp",
        needs=("respx", "time-machine", "dirty-equals", "http-snapshot[httpx]==0.1.9", "httpx2>=2.9"),
        base="",
        files={"test_messages.py": (), "test_models.py": ()},
    ),
}


EXPLAINED = {
    ("test_embeddings.py", "APIResponseValidationError"): (
        "The SDK asks for base64, gets it, and in its strict mode refuses a vector that is no list before it decodes it."
    ),
    ("test_responses.py", "missing required field `model`"): (
        "These send an empty request: neither model nor input. The mock server they are written for answers anything."
    ),
}
"""What is to be said of a failure, by its file and a part of its reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one test."""

    file: str
    test: str
    failure: str | None


def run_suite(suite: Suite, address: str) -> tuple[list[Outcome], collections.Counter[str]]:
    """All outcomes, and how many tests of each file are of endpoints that are not offered."""
    source = suite.source()
    outcomes, left_out = [], collections.Counter[str]()
    for file, not_offered in suite.files.items():
        path = f"tests/api_resources/{file}"
        if not (source / path).is_file():
            outcomes.append(Outcome(file, "(all)", "there is no such file in this version"))
            continue
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            printed = subprocess.run(
                [
                    *(
                        suite.environment.python,
                        "-m",
                        "pytest",
                        path,
                        "--tb=short",
                        "--override-ini=addopts=",
                    ),
                    *("-p", "no:cacheprovider", "-p", "no:inline_snapshot", f"--junitxml={report.name}"),
                    *(("-p", "tests._alias_httpx") if (source / "tests/_alias_httpx.py").is_file() else ()),
                    *("-k", " and ".join(f"not _{name}" for name in not_offered)),
                ],
                cwd=source,
                env=os.environ | {"TEST_API_BASE_URL": address + suite.base, "PYTHONPATH": ""},
                capture_output=True,
                text=True,
            ).stdout
            try:
                outcomes += read_junit(Path(report.name), file)
            except xml.etree.ElementTree.ParseError:
                outcomes.append(Outcome(file, "(all)", printed[-300:]))
        last = printed.strip().rsplit("\n", 1)[-1]
        left_out[file] = next(
            (int(part.split()[0]) for part in last.strip("= ").split(", ") if "deselected" in part), 0
        )
    return outcomes, left_out


def read_junit(report: Path, file: str) -> list[Outcome]:
    outcomes = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        told = None if wrong is None else _reason(wrong.get("message") or wrong.text or "?")
        outcomes.append(Outcome(file, name, told))
    return outcomes


def _reason(text: str) -> str:
    """Short, and the same for every request."""
    return " ".join(re.sub(r"'request_id': '\w+'", "", text).split())[:300]


def table(name: str, outcomes: Sequence[Outcome], left_out: collections.Counter[str]) -> str:
    lines = [f"## {name}", "", "| file | passed | failed | not offered |", "|---|---|---|---|"]
    for file in dict.fromkeys(outcome.file for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.file == file]
        failed = sum(outcome.failure is not None for outcome in own)
        lines.append(f"| {file} | {len(own) - failed} | {failed} | {left_out[file]} |")
    lines.append("")
    reasons: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.failure is not None:
            reasons[outcome.file, outcome.failure].append(outcome.test.split("::")[-1].split("[")[0])
    for (file, reason), tests in reasons.items():
        lines.append(f"- {file}, {len(tests)} tests ({', '.join(sorted(set(tests)))}): {reason}")
        lines += [f"  {why}" for (where, part), why in EXPLAINED.items() if where == file and part in reason]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdk", nargs="+", choices=SUITES, default=list(SUITES), help="instead of both")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "sdk-suites.md")
    args = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    for name in args.sdk:
        SUITES[name].environment.prepare()
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    with tempfile.TemporaryDirectory() as cache:
        server = Process(
            [
                *(sys.executable, "-m", "penstock", "serve", "--port", str(port), "--cache-path", cache),
                *("--unsupported", "drop", "--model-aliases", "*=builtin"),
            ],
            {},
            SCRATCH / "logs" / "sdk-suites.log",
        )
        try:
            address = f"http://127.0.0.1:{port}"
            server.wait_until_ready(f"{address}/health", START_SECONDS)
            tables = []
            for name in args.sdk:
                outcomes, left_out = run_suite(SUITES[name], address)
                tables.append(table(f"{name} {SUITES[name].version}", outcomes, left_out))
                print(tables[-1], flush=True)
        finally:
            server.close()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        "# SDKs' own test suites\n\n`python bench/sdk_suites.py`.\n\n" + "\n\n".join(tables) + "\n"
    )


if __name__ == "__main__":
    main()
