"""A large model of random weights in the engine, beside transformers' continuous batching: `bench/gpu_suite.py` runs it.

The shape is Llama 3 8B's (tiny: a toy's). Every batch is sent at once, each prompt of other tokens, and computed twice: the
first time compiles kernels and records what is not recorded yet.
"""

import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

Stamps = list[list[float]]
"""By request, when each of its tokens came."""


@dataclass(frozen=True)
class Load:
    """Tokens of prompts and of answers, of how many requests at once, and of how many where one follows the other; of one
    long prompt; and how often each is computed, the last time being measured."""

    batches: tuple[int, ...]
    places: int
    prompt: int
    output: int
    long_prompt: int
    turns: int


FULL = Load((256, 64, 16, 1), places=64, prompt=256, output=64, long_prompt=8192, turns=2)
TINY = Load((2, 1), places=1, prompt=20, output=3, long_prompt=40, turns=1)


def ways(tiny: bool) -> dict[str, dict[str, object]]:
    """Settings of the engine by name, the ones first that matter most if time runs out."""
    whole = {"quantize": "w8a8", "decode_graphs": "on", "prompt_graphs": "on", "overlap": "on"}
    found = {"W8A8": whole, "W8A8, INT8 KV": whole | {"kv_cache_dtype": "int8"}}
    if not tiny:
        found["bf16"] = whole | {"quantize": "none"}
        found["W8A8, no prompt graphs"] = whole | {"prompt_graphs": "off"}
        found["W8A8, no decode graphs"] = whole | {"decode_graphs": "off"}
        found["W8A8, no overlap"] = whole | {"overlap": "off"}
    return found


def engine(tiny: bool, layers: int, only: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Name and figures, one way of serving after the other; of all, or `only` of those named."""
    load = TINY if tiny else FULL
    known = ["transformers", *ways(tiny)]
    for way in only:
        if way not in known:
            raise SystemExit(f"--ways {way!r} is no way of serving; there are {', '.join(known)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, tiny, layers)
        runs = {"transformers": partial(peer, folder, load, tiny)}
        runs |= {way: partial(ours, folder, load, tiny, settings) for way, settings in ways(tiny).items()}
        for way in only or runs:
            free()
            try:
                yield way, {"layers": layers} | runs[way]()
            except Exception as error:  # one that fails must not hide the next
                traceback.print_exc()
                yield way, {"failure": repr(error)[:300]}


def free() -> None:
    """What the one before held, for the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write_model(folder: Path, tiny: bool, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64 if tiny else 4096,
        intermediate_size=128 if tiny else 14336,
        num_hidden_layers=1 if tiny else layers,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=2 if tiny else 8,
        vocab_size=320 if tiny else 128256,
        max_position_embeddings=512 if tiny else 16384,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32" if tiny else "bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    with torch.device("cpu" if tiny else "cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def ours(folder: Path, load: Load, tiny: bool, settings: dict[str, object]) -> dict[str, object]:
    from penstock import Engine, EngineConfig, SamplingParams

    started = time.perf_counter()
    served = Engine(
        EngineConfig(
            model=str(folder),
            speculation="off",  # random weights repeat themselves
            device="interpreter" if tiny else "cuda",
            **settings,
            max_num_seqs=max(load.batches),
            max_num_batched_tokens=64 if tiny else 8192,
            kv_cache_tokens=1024 if tiny else 131_072,
        )
    )

    def run(prompts: list[list[int]], output: int) -> Stamps:
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        stamps: dict[str, list[float]] = {str(index): [] for index in range(len(prompts))}
        for index, ids in enumerate(prompts):
            served.add_request(str(index), ids, params)
        while served.has_work():
            for delta in served.step():
                stamps[delta.request_id] += [time.perf_counter()] * len(delta.token_ids)
        return list(stamps.values())

    figures = {"load seconds": time.perf_counter() - started} | measured(run, load, tiny)
    for _ in range(load.turns):
        begun = time.perf_counter()
        count = replaced(served, load)
    if not tiny:
        figures[f"output tokens/s of {load.places} places"] = count / (time.perf_counter() - begun)
        figures["kernels of a decode of 64"] = kernels_of(lambda: run(prompts_of(64, 64), 32))
    return figures


def replaced(served: object, load: Load) -> int:
    """Tokens of answers of 16 to 112 tokens, where one that ends makes place for the next prompt: most steps have both."""
    from penstock import SamplingParams

    lengths = [max(1, load.output * (5 + number * 7 % 31) // 20) for number in range(3 * load.places)]
    waiting = list(enumerate(zip(prompts_of(len(lengths), load.prompt), lengths, strict=True)))

    def send() -> None:
        number, (ids, length) = waiting.pop()
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        served.add_request(f"replaced {number}", ids, params)

    for _ in range(load.places):
        send()
    count = 0
    while served.has_work():
        for delta in served.step():
            count += len(delta.token_ids)
            if delta.finish_reason and waiting:
                send()
    assert count == sum(lengths)
    return count


def peer(folder: Path, load: Load, tiny: bool) -> dict[str, object]:
    """The same by transformers: unquantized, paged attention by SDPA, its own settings."""
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    # Its own takes most of the memory there is.
    settings = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64) if tiny else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    model = model.to("cpu" if tiny else "cuda").eval()
    sized_for = (0, 0)

    def run(prompts: list[list[int]], output: int) -> Stamps:
        nonlocal sized_for
        size = len(prompts), len(prompts[0])
        if sized_for != size:  # its pool is made for the first batch it sees
            model.destroy_cached_continuous_batching_manager()
            sized_for = size
        asked = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(
            prompts,
            generation_config=asked,
            continuous_batching_config=settings,
            record_timestamps=True,
            persistent_manager=True,
        )
        if len(found) < len(prompts) or any(own.error for own in found.values()):
            raise RuntimeError(
                f"transformers answered {len(found)} of {len(prompts)} requests, or with errors"
            )
        return [own.timestamps for own in found.values()]

    figures = measured(run, load, tiny)
    model.destroy_cached_continuous_batching_manager()
    return figures


def measured(run: Callable[[list[list[int]], int], Stamps], load: Load, tiny: bool) -> dict[str, object]:
    """Of each batch what all of it took, and decoding alone once every request has its first token."""
    figures: dict[str, object] = {}
    for batch in load.batches:
        for _ in range(load.turns):
            begun = time.perf_counter()
            stamps = run(prompts_of(batch, load.prompt), load.output)
        count = sum(map(len, stamps))
        if tiny:  # how fast the interpreter is says nothing
            figures[f"tokens at {batch}"] = count
            continue
        all_begun, ended = max(own[0] for own in stamps), max(own[-1] for own in stamps)
        after = sum(stamp > all_begun for own in stamps for stamp in own)
        figures[f"output tokens/s at {batch}"] = count / (ended - begun)
        figures[f"decoded tokens/s at {batch}"] = after / (ended - all_begun)
    for _ in range(load.turns):
        begun = time.perf_counter()
        (stamps,) = run(prompts_of(1, load.long_prompt), 1)
    if not tiny:
        figures[f"first token of {load.long_prompt}, seconds"] = stamps[0] - begun
    return figures


def prompts_of(batch: int, length: int) -> list[list[int]]:
    return torch.randint(3, 300, (batch, length)).tolist()


def kernels_of(run: Callable[[], object]) -> dict[str, float]:
    """Microseconds by kernel, the dozen that took most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
    took = sorted(seen.key_averages(), key=lambda own: -own.self_device_time_total)
    return {own.key[:80]: own.self_device_time_total for own in took[:12]}
