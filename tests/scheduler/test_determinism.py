"""The same answer under any load: concurrent, chunked, preempted or alone, token for token, bit for bit."""

import random
from pathlib import Path

import pytest
from c_kernels import needs_c_kernels
from tiny_mixture import save_mixture

from penstock.models.location import BUILTIN_FOLDERS
from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.outputs import TokenLogprob

REQUESTS = 64


def mixed_requests(vocab_size: int, rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """Greedy and sampled, short and long, filtered and penalized, some with a common beginning."""
    shared = [rng.randrange(3, vocab_size) for _ in range(70)]
    requests = []
    for number in range(REQUESTS):
        prompt = [
            rng.randrange(3, vocab_size) for _ in range(rng.choice([1, 2, 15, 16, 17, 31, 33, 64, 130]))
        ]
        if number % 4 == 0:
            prompt = shared[: rng.choice([32, 40, 70])] + prompt
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 1.5]),
            top_k=rng.choice([-1, -1, 5, 50]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            seed=rng.randrange(2**64),
            max_tokens=rng.randrange(1, 40),
            logprobs=rng.choice([0, 2]),
            ignore_eos=number % 2 == 0,
        )
        requests.append((prompt, params))
    return requests


def run(
    engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]], rng: random.Random | None = None
):
    """Tokens and logprobs by request; with `rng`, budgets vary and requests arrive while others run."""
    outputs: dict[str, tuple[list[int], list[TokenLogprob], str | None]] = {}
    queue = list(requests.items())
    while queue or engine.has_work():
        for _ in range(len(queue) if rng is None else min(len(queue), rng.choice([0, 1, 4, 20]))):
            name, (prompt, params) = queue.pop(0)
            engine.add_request(name, prompt, params)
        if rng is not None:
            engine.scheduler.max_num_batched_tokens = rng.choice([16, 17, 40, 64, 256])
        for delta in engine.step():
            tokens, logprobs, _ = outputs.get(delta.request_id, ([], [], None))
            outputs[delta.request_id] = (
                tokens + delta.token_ids,
                logprobs + (delta.logprobs or []),
                delta.finish_reason,
            )
        engine.check()
    return outputs


def assert_same_under_load(config: EngineConfig, *, max_num_seqs: int = 32) -> None:
    import msgspec

    rng = random.Random(4)
    solo = Engine(msgspec.structs.replace(config, kv_cache_tokens=None, prefix_caching=False))
    requests = {str(n): request for n, request in enumerate(mixed_requests(solo.info.vocab_size, rng))}
    alone = {}
    for name, request in requests.items():
        alone |= run(solo, {name: request})
    # A pool of a few sequences for all of them; a smallest budget of 16 limits the running ones otherwise.
    engine = Engine(msgspec.structs.replace(config, max_num_batched_tokens=64, max_num_seqs=max_num_seqs))
    engine.scheduler.max_num_seqs = 16
    for _ in range(2):
        together = run(engine, requests, rng)
        assert len(together) == REQUESTS
        for name in requests:
            assert together[name] == alone[name], name
    assert engine.stats.preemptions > 0 and engine.stats.prefix_hits > 0
    assert engine.stats.kv_blocks_used == 0


def test_a_tiny_llama_in_w8a8_answers_the_same_under_load(tiny_llama: Path):
    assert_same_under_load(
        EngineConfig(
            model=str(tiny_llama), quantize="w8a8", max_model_len=256, kv_cache_tokens=640, block_size=16
        )
    )


@needs_c_kernels
@pytest.mark.parametrize("quantize", ["w8a8", "w4a16"])
def test_int8_keys_and_values_answer_the_same_under_load(quantize: str, tiny_llama: Path):
    assert_same_under_load(
        EngineConfig(
            model=str(tiny_llama),
            quantize=quantize,
            kv_cache_dtype="int8",
            max_model_len=256,
            kv_cache_tokens=640,
            block_size=16,
        )
    )


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"])
def test_a_tiny_mixture_of_experts_in_w8a8_answers_the_same_under_load(kind: str, tmp_path: Path):
    """Routers are float products, shared experts have a gate of one column, and a token's experts are added up in order."""
    model = str(save_mixture(kind, tmp_path))
    assert_same_under_load(
        EngineConfig(model=model, quantize="w8a8", max_model_len=256, kv_cache_tokens=640, block_size=16)
    )


@pytest.mark.parametrize("model", BUILTIN_FOLDERS)
def test_a_builtin_model_answers_the_same_under_load(model):
    assert_same_under_load(EngineConfig(model=model, max_model_len=256, kv_cache_tokens=640))
