"""The load client against a server that misbehaves on request: what it counts, and what it does not."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import orjson
import pytest
from aiohttp import web
from load_client import LoadPlan, SyntheticPrompts, file_prompts, fit_words, refuse_unless_loopback, run_load

GAP = 0.02


def piece(text: str, finish_reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


class Server:
    """Answers four words a request; the prompt says what goes wrong."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, Mapping[str, str]]] = []

    async def chat(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][0]["content"]
        self.seen.append((prompt, request.headers))
        return await answer(request, prompt)


async def answer(request: web.Request, prompt: str) -> web.StreamResponse:
    if "refuse" in prompt:
        return web.json_response({"error": {"message": "too much"}}, status=429)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)

    async def send(event: object) -> None:
        raw = b"data: " + (event if isinstance(event, bytes) else orjson.dumps(event)) + b"\n\n"
        await response.write(raw[:7])  # events arrive in pieces in real life, too
        await response.write(raw[7:])

    await send(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    )
    if "stall" in prompt:
        await asyncio.sleep(30)
    for word in ("one", "two", "three", "four"):
        await asyncio.sleep(GAP)
        if "fail" in prompt and word == "three":
            await send({"error": {"message": "engine died"}})
            return response
        if "cut" in prompt and word == "three":
            return response
        await send(piece(word))
    await send(piece("", "stop"))
    if "nousage" not in prompt:
        words = len(prompt.split())
        await send({"choices": [], "usage": {"prompt_tokens": 3 * words + 10, "completion_tokens": 4}})
    await send(b"[DONE]")
    return response


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "scripted"}]})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server, app = Server(), web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


async def test_figures_of_a_well_behaved_server(server):
    plan = LoadPlan(prompt=lambda n: f"prompt {n}", url=server.url, requests=6, concurrency=3, warmup=1)
    report = await run_load(plan)
    assert (report.completed, report.failed, report.unfinished, report.errors) == (6, 0, 0, {})
    assert len(server.seen) == 7
    assert (report.output_tokens, report.prompt_tokens) == (24, 6 * 16)
    assert report.finish_reasons == {"stop": 6}
    gap = GAP * 1e3
    assert gap * 0.9 < report.ttft.p50 < gap * 3
    assert gap * 0.9 < report.itl.p50 < gap * 3
    assert gap * 0.9 < report.tpot.p50 < gap * 3
    assert gap * 3.6 < report.e2e.p50 < gap * 12
    assert report.output_tokens_per_second == pytest.approx(24 / report.seconds)
    assert "6 completed" in report.table()
    assert orjson.loads(report.json())["completed"] == 6
    assert all(headers["x-penstock-cache-control"] == "no-cache, no-store" for _, headers in server.seen)


@pytest.mark.parametrize(
    ("prompt", "error"), [("refuse", "HTTP 429"), ("fail", "engine died"), ("cut", "without finish_reason")]
)
async def test_what_goes_wrong_is_an_error_and_not_a_figure(server, prompt, error):
    plan = LoadPlan(prompt=lambda n: prompt if n else "fine", url=server.url, requests=3, concurrency=3)
    report = await run_load(plan)
    assert (report.completed, report.failed) == (1, 2)
    assert error in next(iter(report.errors))
    assert report.output_tokens == 4


async def test_missing_usage_is_unknown(server):
    report = await run_load(LoadPlan(prompt=lambda n: "nousage", url=server.url, requests=1, concurrency=1))
    assert report.completed == 1
    assert report.output_tokens is report.output_tokens_per_second is report.tpot is None
    assert "unknown" in report.table()


async def test_the_time_limit_cuts_what_is_under_way(server):
    plan = LoadPlan(prompt=lambda n: "stall", url=server.url, requests=50, concurrency=2, seconds=0.3)
    report = await run_load(plan)
    assert (report.completed, report.failed, report.unfinished) == (0, 0, 2)
    assert report.seconds < 2


async def test_synthetic_prompts_have_the_wanted_length_on_this_server(server):
    plan = LoadPlan(prompt=lambda n: "", url=server.url)
    words = await fit_words(plan, 310)
    assert abs(3 * (words + 1) + 10 - 310) <= 3
    make = SyntheticPrompts(words)
    assert make(1) == SyntheticPrompts(words)(1) != make(2)
    assert len(make(1).split()) == words + 1


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1",
        "http://10.0.0.1:8000",
        "https://127.0.0.1",
        "http://127.0.0.1.example.com",
        "8000",
        "",
    ],
)
def test_other_machines_are_refused(url):
    with pytest.raises(ValueError, match="not on this machine"):
        refuse_unless_loopback(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://localhost:1", "http://[::1]:8000/v1"])
def test_this_machine_is_accepted(url):
    refuse_unless_loopback(url)


def test_bounds():
    for name, value in (("requests", 0), ("concurrency", 10**6), ("seconds", float("nan"))):
        with pytest.raises(ValueError, match=name):
            LoadPlan(prompt=str, **{name: value})


def test_prompts_from_a_file(tmp_path):
    file = tmp_path / "prompts"
    file.write_text('plain words\n\n"quoted"\n{"prompt": "an object"}\n')
    prompt = file_prompts(file)
    assert [prompt(number) for number in range(4)] == ["plain words", "quoted", "an object", "plain words"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="no prompt"):
        file_prompts(file)
