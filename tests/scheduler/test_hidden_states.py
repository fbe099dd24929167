"""The state behind a prompt, from an engine that computes other things: the same bits alone, in any batch, in any chunks."""

import asyncio
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from penstock.errors import InvalidRequestError
from penstock.models.loading import load_model
from penstock.scheduler import AsyncEngine, Engine, EngineConfig, SamplingParams
from penstock.scheduler.request_checks import check_request

STATE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, hidden_state=True)
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
BLOCK = 16


def config_of(model: str, **settings) -> EngineConfig:
    return EngineConfig(model=model, block_size=BLOCK, kv_cache_tokens=2048, threads=1, **settings)


@pytest.fixture(scope="module")
def builtin() -> Engine:
    """Whose layers and vocabulary are the C library's."""
    return Engine(config_of("builtin"))


def prompts_of(engine: Engine) -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(3, engine.info.vocab_size) for _ in range(length)] for length in (1, 7, 16, 33, 90)
    ]


def states_of(engine: Engine, prompts: list[list[int]]) -> list[np.ndarray]:
    for number, prompt in enumerate(prompts):
        engine.add_request(f"state {number}", prompt, STATE)
    found: dict[str, bytes] = {}
    while any(engine.is_live(f"state {number}") for number in range(len(prompts))):
        for delta in engine.step():
            if delta.hidden_state is not None:
                assert delta.request_id not in found
                found[delta.request_id] = delta.hidden_state
    return [np.frombuffer(found[f"state {number}"], np.float32) for number in range(len(prompts))]


@torch.inference_mode()
def by_transformers(prompt: list[int]) -> np.ndarray:
    """In the floats that are stored, of which ours are rounded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(load_model("builtin").path, dtype=torch.float32)
    return model.model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_it_is_the_models_own(builtin: Engine) -> None:
    prompt = prompts_of(builtin)[3]
    (state,) = states_of(builtin, [prompt])
    assert state.shape == (builtin.info.hidden_size,) == (384,)
    assert cosine(state, by_transformers(prompt)) > 0.99


def test_the_same_bits_beside_others_and_in_pieces(builtin: Engine) -> None:
    prompts = prompts_of(builtin)
    alone = [states_of(builtin, [prompt])[0] for prompt in prompts]
    whole = builtin.scheduler.max_num_batched_tokens
    for number in range(5):
        builtin.add_request(f"beside {number}", [5 + number] * (3 + 20 * number), LONG)
    builtin.step()
    builtin.scheduler.max_num_batched_tokens = 20
    together = states_of(builtin, prompts)
    builtin.scheduler.max_num_batched_tokens = whole
    while builtin.has_work():
        builtin.step()
    builtin.check()
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_others_are_computed_as_without_it(builtin: Engine) -> None:
    def tokens(*, beside: bool) -> list[int]:
        builtin.add_request("one", [7, 8, 9], LONG)
        found: list[int] = []
        while builtin.is_live("one"):
            if beside and len(found) == 20:
                for number, prompt in enumerate(prompts_of(builtin)):
                    builtin.add_request(f"state {number}", prompt, STATE)
            for delta in builtin.step():
                found += delta.token_ids if delta.request_id == "one" else []
        return found

    assert tokens(beside=True) == tokens(beside=False)


def test_it_comes_with_the_first_token_only(builtin: Engine) -> None:
    builtin.add_request("long", [7, 8, 9], msgspec.structs.replace(LONG, hidden_state=True))
    deltas = [delta for _ in range(60) for delta in builtin.step()]
    assert [delta.hidden_state is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert not builtin.has_work()


def test_generate_gives_it(builtin: Engine) -> None:
    prompt = prompts_of(builtin)[1]
    (result,) = builtin.generate([prompt], STATE, progress=False)
    assert result.completions[0].hidden_state == states_of(builtin, [prompt])[0].tobytes()
    (result,) = builtin.generate([prompt], LONG, progress=False)
    assert result.completions[0].hidden_state is None


def test_it_neither_uses_nor_fills_the_prefix_cache(builtin: Engine) -> None:
    """Its time would tell what was asked before, by whomever; and it is not what others will ask for."""
    asked, other = [11] * (5 * BLOCK), [12] * (5 * BLOCK)
    builtin.generate([asked], LONG, progress=False)
    before, kept = builtin.stats, set(builtin.block_manager.cached)
    states_of(builtin, [asked, other])
    after = builtin.stats
    assert after.prompt_tokens - before.prompt_tokens == len(asked) + len(other)
    assert (after.prefix_queries, after.prefix_hits) == (before.prefix_queries, before.prefix_hits)
    assert set(builtin.block_manager.cached) == kept


@pytest.mark.parametrize("settings", [{"overlap": "on"}, {"device": "interpreter", "decode_graphs": "on"}])
def test_steps_that_overlap_or_are_replayed(tiny_llama: Path, settings: dict[str, str]) -> None:
    """A prompt of one token looks like a decode, of which nothing but logits would be replayed."""
    common = {"model": str(tiny_llama), "quantize": "w8a8", "dtype": "float32", "kv_cache_tokens": 2048}
    plain, other = Engine(EngineConfig(**common)), Engine(EngineConfig(**common, **settings))
    prompts = prompts_of(plain)[:3]
    for engine in (plain, other):
        engine.add_request("beside", [5, 6], msgspec.structs.replace(LONG, drafters=()))
        engine.step()
        engine.step()
    for one, two in zip(states_of(plain, prompts), states_of(other, prompts), strict=True):
        assert cosine(one, two) > 0.999
    assert plain.is_live("beside") and other.is_live("beside")


def test_a_model_that_hides_them(builtin: Engine) -> None:
    info = msgspec.structs.replace(builtin.info, hidden_size=0, architecture="OPTForCausalLM")
    with pytest.raises(InvalidRequestError, match="OPTForCausalLM keeps its hidden states to itself"):
        check_request(builtin.config, info, [1, 2], STATE, [])


async def test_through_the_engines_process_and_its_death() -> None:
    engine = AsyncEngine(config_of("builtin"))
    await engine.start()
    try:
        prompts = [[5 + number] * 40 for number in range(40)]
        before = [await engine.hidden_state(prompt) for prompt in prompts]
        asked = [asyncio.create_task(engine.hidden_state(prompt)) for prompt in prompts]
        await asyncio.sleep(0)
        engine._host._process.kill()
        after = await asyncio.gather(*asked)
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        leaving = asyncio.create_task(engine.hidden_state([9] * 1000))
        await asyncio.sleep(0)
        leaving.cancel()
        assert np.array_equal(await engine.hidden_state(prompts[0]), before[0])
        while engine.stats.kv_blocks_used:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finally:
        await engine.shutdown()
