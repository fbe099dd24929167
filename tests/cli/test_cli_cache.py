"""`penstock cache` beside a server that uses the cache: what it says, and that the server heeds it."""

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from penstock.cache.key import tenant_hash
from penstock.cache.opened import opened_cache
from penstock.cli import main
from penstock.cli_cache_examples import examples_from_cache
from penstock.compress.texts import read_examples
from penstock.config import load_settings
from penstock.proxy.controls import tenant_of

CLI = [sys.executable, "-m", "penstock"]
DOCS = Path(__file__).parents[2] / "docs" / "cache.md"
# The random model ends its answers at once under this bias.
ENDS: dict[str, Any] = {"logit_bias": {"256": 100}, "max_tokens": 9}
# And this way it says something before.
SPEAKS: dict[str, Any] = {"logit_bias": None, "max_tokens": 30, "guided_regex": "(yes|no), [a-e]{4}"}


class Place:
    """A running server and its cache's folder."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url, self.cache = url, cache

    def ask(self, question: str, key: str = "", **change: Any) -> str:
        """What the cache did."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "temperature": 0}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(
            self.url + "/v1/chat/completions", json.dumps(body | ENDS | change).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()
            return str(reply.headers["x-penstock-cache"])

    def keep(self, question: str, key: str = "", **change: Any) -> None:
        """Asks, and waits until the answer is committed."""
        tenant, deadline = tenant_hash(tenant_of(key)), time.monotonic() + 20
        self.ask(question, key, **change)
        with opened_cache(self.cache, max_bytes=1 << 30) as cache:
            while not any(
                entry.question is not None and entry.question.text == question
                for entry in cache.entries(tenant)
            ):
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def wait_for_index(self) -> None:
        """The embedder loads while the server serves already."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with opened_cache(self.cache, max_bytes=1 << 30) as cache:
                if cache.index is not None:
                    return
            time.sleep(0.05)
        raise AssertionError("nothing embeds")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cache-cli")
    model = write_tiny_model(folder / "tiny")
    encoder = write_tiny_encoder(folder / "encoder", hidden_size=256)
    pooling = folder / "encoder" / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("64", "256"))
    settings = [
        "--model",
        model,
        "--embedding-model",
        encoder,
        "--cache-path",
        folder / "cache",
        "--threads",
        "1",
    ]
    settings += ["--cache-no-store-patterns", "(?i)what time", "--cache-prompts"]
    serve = [*CLI, "serve", "--port", "0", *map(str, settings)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        place = Place(process.stdout.readline().split(" at ")[-1].strip(), folder / "cache")
        place.wait_for_index()
        yield place
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def cli(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Any":
    """Runs `penstock cache` on the server's cache; its output, or what it says on failure."""
    monkeypatch.setenv("PENSTOCK_CACHE_PATH", str(place.cache))
    monkeypatch.setenv("PENSTOCK_EMBEDDING_MODEL", str(place.cache.parent / "encoder"))

    def run(*arguments: str, fails: bool = False) -> str:
        code = main(["cache", *arguments])
        printed = capsys.readouterr()
        assert code == fails, printed.err
        return printed.err if fails else printed.out

    return run


def warmed(
    place: Place, cli: Any, tmp_path: Path, lines: list[dict[str, Any]], *more: str, **run: Any
) -> str:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = str(cli("warm", str(log), "--url", place.url, *more, **run))
    return printed


def chat(question: str, **change: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]} | ENDS | change


def test_warm_fills_the_cache_of_a_server(place: Place, cli: Any, tmp_path: Path) -> None:
    lines = [chat(f"question number {number}", id=number, stream=True) for number in range(12)]
    assert re.match(
        r"12 requests in \d+\.\d s: (\d+ draft, )?\d+ miss\.\n$", warmed(place, cli, tmp_path, lines)
    )
    assert "12 hit." in warmed(place, cli, tmp_path, lines)
    assert place.ask("question number 3") == "hit"
    others = [
        chat("question number 3", max_tokens=1, logit_bias=None),
        chat("sampled", temperature=1.0),
        chat("what time is it?"),
        {"prompt": "raw", "model": "tiny"} | ENDS,
    ]
    printed = warmed(place, cli, tmp_path, others, "--concurrency", "1")
    assert "2 bypass" in printed and "Never cached, 2:" in printed and "not kept, 1." in printed
    assert "1 hit" in warmed(place, cli, tmp_path, others[3:])
    assert "1 miss" in warmed(place, cli, tmp_path, others[3:], "--api-key", "somebody")
    wrong = [chat("x", surprise=1), chat("question number 3")]
    log = tmp_path / "wrong.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    assert "surprise" in cli("warm", str(log), "--url", place.url, fails=True)


def test_stats_get_and_explain_tell_of_what_was_asked(place: Place, cli: Any) -> None:
    for tenant in ("", "alice"):
        place.keep("where is the Kettle?", tenant)
        place.keep("where is the tea?", tenant)
    stats = json.loads(cli("stats", "--json"))
    assert stats["with_question"] == stats["entries"] == stats["index"]["entries"] >= 4
    assert stats["index"]["dims"] == 256 and stats["index"]["partitions"] >= 2
    assert {"default", None} <= {scope["name"] for scope in stats["scopes"]}
    assert sum(scope["entries"] for scope in stats["scopes"]) == stats["entries"]
    text = cli("stats")
    assert f"entries     {stats['entries']}" in text and "(default)" in text and "alice" not in text

    found = json.loads(cli("get", "KETTLE", "--json"))
    assert len(found) == 2 and {entry["question"] for entry in found} == {"where is the Kettle?"}
    assert found[0]["created"] >= found[1]["created"]
    assert len(json.loads(cli("get", "where", "--limit", "3", "--json"))) == 3
    assert "where is the Kettle?" in cli("get", "kettle") and "Nothing found" in cli("get", "no such words")
    whole = cli("get", "--place", found[0]["place"])
    assert "where is the Kettle?" in whole and "expires  never" in whole and "finish_reason stop" in whole

    explained = json.loads(cli("explain", "where is the Kettle?", "--limit", "5", "--json"))
    assert len(explained) == stats["index"]["partitions"]
    whose = tenant_hash(tenant_of("alice")).hex()
    (alices,) = [one for one in explained if one["partition"].startswith(whose)]
    first, second = alices["neighbours"]
    assert first["question"] == "where is the Kettle?" and first["similarity"] > 0.999
    assert first["rung"] == "draft" and second["rung"] == "none"
    assert alices["before"] + "where is the Kettle?" + alices["after"] in whole


def test_an_embedder_that_is_another_is_noticed(place: Place, cli: Any, tmp_path: Path) -> None:
    place.keep("where is the sugar?")
    other = write_tiny_encoder(tmp_path / "other", seed=1, hidden_size=256)
    pooling = other / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("64", "256"))
    assert "embedded by another model" in cli(
        "explain", "where is the sugar?", "--embedding-model", str(other)
    )


def test_no_question_steers_the_terminal(place: Place, cli: Any) -> None:
    place.keep("in bold\x1b[1m?")
    (entry,) = json.loads(cli("get", "in bold", "--json"))
    for printed in (cli("get", "in bold"), cli("get", "--place", entry["place"])):
        assert "in bold\\x1b[1m?" in printed and "\x1b" not in printed


def test_what_is_purged_is_not_served(place: Place, cli: Any) -> None:
    for question in ("purge me", "keep me"):
        place.keep(question)
        assert place.ask(question) == "hit"
    assert "1 entry would be removed" in cli(
        "purge", "--matching", "PURGE me", "--older-than", "0", "--dry-run"
    )
    assert place.ask("purge me") == "hit"
    assert "1 entry removed" in cli("purge", "--matching", "PURGE me")
    assert "0 entries" in cli("purge", "--matching", "keep me", "--tenant", "nobody", "--namespace", "")
    assert place.ask("purge me") in ("miss", "draft") and place.ask("keep me") == "hit"
    (entry,) = json.loads(cli("get", "keep me", "--json"))
    assert "0 entries removed" in cli("purge", "--place", entry["place"], "--older-than", "1h")
    assert "1 entry removed" in cli("purge", "--place", entry["place"])
    assert place.ask("keep me") in ("miss", "draft")


def test_what_is_imported_is_served(place: Place, cli: Any, tmp_path: Path) -> None:
    place.keep("carry me over", "bob")
    file = str(tmp_path / "bob.jsonl")
    assert "1 entry written" in cli("export", file, "--api-key", "bob")
    assert "1 entry removed" in cli("purge", "--api-key", "bob")
    assert "1 entry stored" in cli("import", file)
    assert place.ask("carry me over", "bob") == "hit"
    assert "here already: 1" in cli("import", file)


def test_examples_are_one_tenants_and_what_every_command_reads(
    place: Place, cli: Any, tmp_path: Path
) -> None:
    for name in ("carol", "dave"):
        place.keep(f"asked by {name}", name, **SPEAKS)
        place.keep(f"asked by {name}, answered with nothing", name)
    file = tmp_path / "carol.jsonl"
    printed = cli("examples", str(file), "--api-key", "carol")
    assert printed == "1 example of the tenant of that API key from the cache; left out: 1 empty.\n"
    (example,) = read_examples(file)
    question, answer = example.messages
    assert question == {"role": "user", "content": "asked by carol"}
    assert answer["role"] == "assistant" and re.fullmatch(SPEAKS["guided_regex"], answer["content"])
    settings = load_settings({"cache_path": str(place.cache)}, {})
    whose = {"tenant": None, "api_key": ["carol", "dave"], "namespace": None}
    found = examples_from_cache(settings, whose)
    assert example in found.examples and len(found.examples) == 2 and "2 empty" in found.summary

    (entry,) = json.loads(cli("get", "asked by carol", "--limit", "1", "--json"))
    assert entry["prompt"]["messages"] == [{"role": "user", "content": entry["question"]}]
    assert "prompt, whole" in cli("get", "--place", entry["place"])
    stats = json.loads(cli("stats", "--json"))
    assert f"{stats['with_prompt']} with the whole prompt" in cli("stats") and stats["with_prompt"] >= 4
    assert "2 entries removed" in cli("purge", "--api-key", "carol")
    assert "holds nothing of" in cli("examples", str(tmp_path / "gone"), "--api-key", "carol", fails=True)
    assert len(examples_from_cache(settings, whose | {"api_key": ["dave"]}).examples) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stats", "--cache-path", "./nowhere"), "There is no cache at nowhere; name its folder"),
        (("get",), "Give either a TEXT"),
        (("get", "x", "--limit", "0"), "limit is 0; it must be at least 1"),
        (("get", "--place", "12"), "place is '12'; it must be 80 hexadecimal digits"),
        (("get", "--place", "12" * 40), "There is no entry at 1212"),
        (("purge",), "Say what to remove: --all"),
        (("purge", "--all", "--namespace", "x"), "Say what to remove: --all"),
        (("purge", "--matching", ""), "matching is empty, and would select far more"),
        (("purge", "--api-key", "", "--dry-run"), "api_key is empty, and would select far more"),
        (("purge", "--api-key", "psk-0123456789ab-x"), "give the name of its tenant with --tenant"),
        (("purge", "--namespace", "", "--tenant", ""), "namespace is empty, and would select far more"),
        (("purge", "--older-than", "7 days"), "older-than is '7 days'; it must be seconds, or 30m"),
        (("export", "/no/such/file"), "cannot be written: No such file"),
        (("examples", "/dev/null"), "/dev/null exists already"),
        (("examples", "x", "--tenant", "nobody"), "holds nothing of tenant 'nobody'"),
        (("examples", "x", "--api-key", ""), "api_key is empty"),
        (("examples", "x", "--api-key", "psk-0123456789ab-x"), "give the name of its tenant with --tenant"),
        (("import", "/no/such/file"), "cannot be read: there is no such file"),
        (("backup", "/"), "/ is not empty"),
        (("explain", " "), "TEXT has 0 characters"),
        (("explain", "x", "--limit", "33"), "limit is 33; a search gives 1 to 32"),
        (("explain", "x", "--embedding-model", "none"), "No embedding model: install penstock[semantic]"),
        (("warm", "/no/such/file", "--url", "http://127.0.0.1:9"), "cannot be read"),
        (("warm", "/dev/null", "--url", "http://127.0.0.1:9"), "cannot be reached"),
        (("warm", "/dev/null", "--url", "nonsense"), "url is 'nonsense'; write it as http://host:port"),
    ],
)
def test_a_mistake_is_one_line(place: Place, cli: Any, arguments: tuple[str, ...], says: str) -> None:
    place.keep("hello")
    printed = cli(*arguments, fails=True)
    assert says in printed and len(printed.strip().splitlines()) == 1, printed


def test_a_wrong_pattern_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--cache-no-store-patterns", "fine,(", "--port", "0"]) == 1
    assert (
        "cache_no_store_patterns holds '(', which is no regular expression: missing )"
        in capsys.readouterr().err
    )


def commands() -> list[str]:
    return re.findall(r"^ *(penstock cache .*?)(?: +#.*)?$", DOCS.read_text(), re.MULTILINE)


def test_the_commands_of_the_page_run(
    place: Place, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, on a cache with something in it."""
    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_text(json.dumps(chat("how do I extract a tar.gz archive?")) + "\n")
    place.keep("how do I extract a tar.gz archive?")
    place.keep("and how do I make one?", **SPEAKS)
    seen = set()
    for command in commands():
        arguments = shlex.split(command)[2:]
        seen.add(arguments[0])
        if "PLACE" in arguments:
            found = json.loads(cli("get", "tar.gz", "--json"))
            arguments[arguments.index("PLACE")] = found[0]["place"]
        assert cli(*(argument.replace("http://localhost:8000", place.url) for argument in arguments)), command
    assert seen == {
        "stats",
        "get",
        "explain",
        "purge",
        "export",
        "examples",
        "import",
        "warm",
        "backup",
        "trust",
    }
