"""The engine on a real tiny model: every way to end, every refusal, and nothing left behind."""

import shutil
from pathlib import Path

import pytest
import torch
from c_kernels import needs_c_kernels

from penstock.errors import ContextLengthError, InvalidRequestError, ModelLoadError, OverloadedError
from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.outputs import Delta

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def with_changes(params: SamplingParams, **changes) -> SamplingParams:
    import msgspec

    return msgspec.structs.replace(params, **changes)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Engine:
    return Engine(
        EngineConfig(model=str(tiny_llama), max_model_len=256, max_num_batched_tokens=64, max_waiting=16)
    )


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest):
    yield
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")
        engine.check()
        assert not engine.has_work() and engine.stats.kv_blocks_used == 0


def drain(engine: Engine) -> dict[tuple[str, int], list[Delta]]:
    deltas: dict[tuple[str, int], list[Delta]] = {}
    while engine.has_work():
        for delta in engine.step():
            assert not deltas.get((delta.request_id, delta.index), [Delta("", 0, [])])[-1].finish_reason, (
                "twice"
            )
            deltas.setdefault((delta.request_id, delta.index), []).append(delta)
        engine.check()
    assert all(each[-1].finish_reason for each in deltas.values())
    return deltas


def run(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], Delta]:
    engine.add_request("r", prompt, params)
    deltas = drain(engine)["r", 0]
    return [token for delta in deltas for token in delta.token_ids], deltas[-1]


def test_length_ends_with_exactly_max_tokens(engine: Engine):
    tokens, last = run(engine, [5, 6, 7], GREEDY)
    assert len(tokens) == 20 and last.finish_reason == "length" and last.stop_token_id is None
    assert run(engine, [5, 6, 7], with_changes(GREEDY, max_tokens=1))[0] == tokens[:1]


def test_without_max_tokens_the_context_is_the_limit(engine: Engine):
    tokens, last = run(engine, [5] * 250, SamplingParams(temperature=0, ignore_eos=True))
    assert len(tokens) == 6 and last.finish_reason == "length"
    assert len(run(engine, [5] * 255, SamplingParams(temperature=0, ignore_eos=True))[0]) == 1


def test_a_stop_token_ends_and_is_named(engine: Engine):
    tokens, _ = run(engine, [5, 6, 7], GREEDY)
    stop = tokens[7]
    got, last = run(engine, [5, 6, 7], with_changes(GREEDY, stop_token_ids=(stop,)))
    assert got == tokens[: tokens.index(stop) + 1]
    assert last.finish_reason == "stop" and last.stop_token_id == stop


def test_the_end_token_ends_unless_ignored_or_too_early(engine: Engine):
    end = {2: 100.0}  # the model's own end token, forced
    assert run(engine, [5], SamplingParams(temperature=0, logit_bias=end, max_tokens=9))[0] == [2]
    tokens, last = run(
        engine, [5], SamplingParams(temperature=0, logit_bias=end, max_tokens=9, ignore_eos=True)
    )
    assert tokens == [2] * 9 and last.finish_reason == "length"
    tokens, last = run(engine, [5], SamplingParams(temperature=0, logit_bias=end, max_tokens=9, min_tokens=4))
    assert len(tokens) == 5 and tokens[-1] == 2 and 2 not in tokens[:4] and last.finish_reason == "stop"


def test_a_seed_reproduces_and_no_seed_varies(engine: Engine):
    seeded = SamplingParams(temperature=1.5, seed=7, max_tokens=20, ignore_eos=True)
    assert run(engine, [5], seeded)[0] == run(engine, [5], seeded)[0]
    assert run(engine, [5], seeded)[0] != run(engine, [5], with_changes(seeded, seed=8))[0]
    assert (
        run(engine, [5], with_changes(seeded, seed=None))[0]
        != run(engine, [5], with_changes(seeded, seed=None))[0]
    )


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**64 - 1])
def test_every_legal_seed_works(engine: Engine, seed: int):
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=3, n=2, ignore_eos=True)
    engine.add_request("r", [5], params)
    assert len(drain(engine)) == 2


def test_n_gives_so_many_different_completions(engine: Engine):
    params = SamplingParams(temperature=1.0, seed=3, n=4, max_tokens=12, ignore_eos=True)
    engine.add_request("r", list(range(3, 80)), params)
    deltas = drain(engine)
    texts = {
        index: tuple(t for delta in each for t in delta.token_ids) for (_, index), each in deltas.items()
    }
    assert sorted(texts) == [0, 1, 2, 3] and len(set(texts.values())) == 4
    # The first completion is what n = 1 gives.
    assert list(texts[0]) == run(engine, list(range(3, 80)), with_changes(params, n=1))[0]


def test_logprobs_come_one_for_each_token(engine: Engine):
    engine.add_request("r", [5, 6], with_changes(GREEDY, logprobs=3))
    for delta in drain(engine)["r", 0]:
        (entry,) = delta.logprobs
        assert [entry.token_id] == delta.token_ids
        assert len(entry.top) == 3 and entry.top[0] == (
            entry.token_id,
            entry.logprob,
        )  # greedy: the likeliest
        assert all(value <= 0 for _, value in entry.top)
    engine.add_request("r", [5, 6], GREEDY)
    assert all(delta.logprobs is None for delta in drain(engine)["r", 0])


def test_penalties_and_bias_reach_the_sampler(engine: Engine):
    tokens, _ = run(
        engine,
        [5],
        with_changes(GREEDY, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=50.0),
    )
    assert len(set(tokens)) == len(tokens)
    assert set(run(engine, [5], with_changes(GREEDY, logit_bias={9: 100.0}))[0]) == {9}


def test_a_prefix_hit_is_reported_and_changes_nothing(tiny_llama: Path):
    engine = Engine(EngineConfig(model=str(tiny_llama), max_model_len=256))
    prompt = [int(t) for t in torch.randint(3, 300, (100,), generator=torch.Generator().manual_seed(0))]
    first, delta = run(engine, prompt, GREEDY)
    assert delta.num_cached_tokens == 0
    again, delta = run(engine, prompt, GREEDY)
    assert again == first and delta.num_cached_tokens == 96
    assert engine.stats.prefix_hits == 96 and engine.stats.prefix_queries == 200
    engine.add_request("other", prompt, GREEDY, tenant="another")
    assert drain(engine)["other", 0][-1].num_cached_tokens == 0
    off = Engine(EngineConfig(model=str(tiny_llama), max_model_len=256, prefix_caching=False))
    for _ in range(2):
        tokens, delta = run(off, prompt, GREEDY)
        assert tokens == first and delta.num_cached_tokens == 0


REFUSALS = {
    "empty": ([], GREEDY, InvalidRequestError, "empty", "prompt"),
    "too large id": ([5, 320], GREEDY, InvalidRequestError, r"320.*0 to 319", "prompt"),
    "negative id": ([5, -1], GREEDY, InvalidRequestError, r"-1.*0 to 319", "prompt"),
    "bias": (
        [5],
        with_changes(GREEDY, logit_bias={400: 1.0}),
        InvalidRequestError,
        r"logit_bias.*400.*319",
        "logit_bias",
    ),
    "stop": (
        [5],
        with_changes(GREEDY, stop_token_ids=(999,)),
        InvalidRequestError,
        r"999.*319",
        "stop_token_ids",
    ),
    "long": ([5] * 256, GREEDY, ContextLengthError, r"256 tokens.*256", "prompt"),
    "long, open end": ([5] * 256, SamplingParams(), ContextLengthError, r"256", "prompt"),
    "with max_tokens": ([5] * 250, GREEDY, ContextLengthError, r"250 tokens.*20.*270.*256", "max_tokens"),
    "n": ([5], with_changes(GREEDY, n=17), InvalidRequestError, r"17.*16", "n"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_served_is_refused_with_values(engine: Engine, name: str):
    prompt, params, kind, message, param = REFUSALS[name]
    with pytest.raises(kind, match=message) as caught:
        engine.add_request("r", prompt, params)
    assert caught.value.param == param
    assert not engine.is_live("r")


def test_a_full_queue_refuses_with_a_time_to_retry(engine: Engine):
    for number in range(16):
        engine.add_request(str(number), [5], GREEDY)
    with pytest.raises(OverloadedError, match=r"16 sequences are waiting.*16") as caught:
        engine.add_request("one more", [5], GREEDY)
    assert caught.value.retry_after > 0
    for number in range(16):
        engine.abort(str(number))


def test_a_live_id_is_refused(engine: Engine):
    engine.add_request("same", [5], GREEDY)
    with pytest.raises(InvalidRequestError, match="same"):
        engine.add_request("same", [5], GREEDY)
    engine.abort("same")
    engine.add_request("same", [5], GREEDY)
    engine.abort("same")


def test_an_abort_frees_everything_at_any_moment(engine: Engine):
    for steps in (0, 1, 2, 5):
        engine.add_request("gone", list(range(3, 200)), with_changes(GREEDY, n=3))
        engine.add_request("stays", [5, 6, 7], GREEDY)
        for _ in range(steps):
            engine.step()
        engine.abort("gone")
        engine.check()
        engine.abort("gone")  # unknown by now
        assert {key[0] for key in drain(engine)} == {"stays"}
        assert engine.stats.kv_blocks_used == 0


def test_one_completion_of_several_can_be_ended(engine: Engine):
    engine.add_request("r", [5], SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=10, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.finish_sequence("r", 1)
    engine.check()
    rest = drain(engine)
    assert {key[1] for key in rest} == {0, 2} and not engine.is_live("r")


def test_generate_returns_in_order_and_whatever_the_queue_holds(tiny_llama: Path):
    engine = Engine(EngineConfig(model=str(tiny_llama), max_model_len=128, max_waiting=2, max_num_seqs=4))
    prompts = [[3 + number] * (1 + number) for number in range(12)]
    results = engine.generate(prompts, GREEDY, progress=False)
    assert [result.prompt_token_ids for result in results] == prompts
    for prompt, result in zip(prompts, results, strict=True):
        (completion,) = result.completions
        assert (completion.token_ids, "length") == (run(engine, prompt, GREEDY)[0], completion.finish_reason)
    assert engine.stats.kv_blocks_used == 0


def test_generate_takes_text_and_stop_strings(tiny_llama: Path):
    engine = Engine(EngineConfig(model=str(tiny_llama), max_model_len=256))
    (whole,) = engine.generate(["list the files"], with_changes(GREEDY, max_tokens=60), progress=False)
    text = whole.completions[0].text
    stop = text[5:8]
    (cut,) = engine.generate(
        ["list the files"], with_changes(GREEDY, max_tokens=60, stop=(stop,), logprobs=1), progress=False
    )
    completion = cut.completions[0]
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop" and completion.stop_reason == stop
    assert len(completion.logprobs) == len(completion.token_ids) < 60
    assert not engine.has_work() and engine.stats.kv_blocks_used == 0
    engine.check()


def test_generate_refuses_before_it_starts(tiny_llama: Path):
    engine = Engine(EngineConfig(model=str(tiny_llama), max_model_len=64))
    with pytest.raises(ContextLengthError):
        engine.generate([[5], [5] * 100], GREEDY, progress=False)
    with pytest.raises(InvalidRequestError, match="2 prompts but 1 params"):
        engine.generate([[5], [6]], [GREEDY], progress=False)
    assert not engine.has_work()


POISON = 311


@pytest.fixture(scope="module")
def poisoned_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token's embedding is NaN: only sequences that hold it are broken."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("poisoned") / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("quantize", "kv"),
    [
        ("none", "auto"),
        ("w8a8", "auto"),
        *(pytest.param(q, "int8", marks=needs_c_kernels) for q in ("none", "w8a8")),
    ],
)
@pytest.mark.parametrize("budget", [8, 64])
def test_a_broken_sequence_ends_alone(poisoned_llama: Path, quantize: str, kv: str, budget: int):
    engine = Engine(
        EngineConfig(
            model=str(poisoned_llama),
            quantize=quantize,
            kv_cache_dtype=kv,
            max_model_len=160,
            kv_cache_tokens=640,
            max_num_batched_tokens=budget,
            block_size=16,
        )
    )
    shared = list(range(3, 43))
    params = with_changes(GREEDY, max_tokens=30, logit_bias={POISON: -100.0})
    healthy = {"a": [5, 6, 7], "b": [*shared, 9], "c": list(range(50, 120))}
    alone = {name: run(engine, prompt, params)[0] for name, prompt in healthy.items()}
    for attempt in range(3):
        for name, prompt in healthy.items():
            engine.add_request(f"bad before {name}", [*prompt[:20], POISON, 4], params)
            engine.add_request(name, prompt, params)
        engine.add_request("bad", [*shared, POISON, *range(3, 70)], with_changes(params, n=2))
        if attempt == 2:
            # Not to its end: what it leaves behind in the pool is then broken as well.
            for _ in range(4):
                engine.step()
            engine.abort("bad")
            for name in healthy:
                engine.abort(f"bad before {name}")
                engine.abort(name)
            for name, prompt in healthy.items():
                engine.add_request(name, prompt, params)
        deltas = drain(engine)
        for (name, _), each in deltas.items():
            if name in healthy:
                assert [t for delta in each for t in delta.token_ids] == alone[name], (attempt, name)
            else:
                assert each[-1].finish_reason == "error" and "finite" in each[-1].error
                assert sum(len(delta.token_ids) for delta in each) == 0
    assert engine.stats.kv_blocks_used == 0


def test_generate_wants_a_list_and_an_idle_engine(engine: Engine):
    with pytest.raises(InvalidRequestError, match="list of prompts"):
        engine.generate("a text", GREEDY, tokenizer=object(), progress=False)  # type: ignore[arg-type]  # the point
    engine.add_request("mine", [5, 6], GREEDY)
    with pytest.raises(InvalidRequestError, match="1 requests are live"):
        engine.generate([[5, 6]], GREEDY, tokenizer=object(), progress=False)  # type: ignore[arg-type]  # never used
    assert drain(engine)["mine", 0]


def test_no_completion_of_one_seed_is_that_of_another(engine: Engine):
    params = SamplingParams(temperature=1.0, seed=10, n=2, max_tokens=20, ignore_eos=True)
    engine.add_request("two", [5, 6, 7], params)
    second = [token for delta in drain(engine)["two", 1] for token in delta.token_ids]
    assert second != run(engine, [5, 6, 7], with_changes(params, n=1, seed=11))[0]


def test_forbidding_every_token_is_refused(engine: Engine):
    everything = tuple(range(engine.info.vocab_size))
    with pytest.raises(InvalidRequestError, match="no token is left"):
        engine.add_request("r", [5], SamplingParams(stop_token_ids=everything, min_tokens=1))


def test_a_context_beyond_the_models_is_refused_not_cut(tiny_llama: Path):
    with pytest.raises(ModelLoadError, match=r"100000.*1024"):
        Engine(EngineConfig(model=str(tiny_llama), max_model_len=100_000))
