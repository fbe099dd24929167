"""An engine as what measuring needs of it: it answers prompts greedily, and decodes at full speed."""

import gc
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Settings
from .errors import CompressError

if TYPE_CHECKING:
    from .compress.evaluate.speed import Speed
    from .models.tokenizer import Tokenizer
    from .scheduler import Completion, Engine, SamplingParams

PROMPT_TOKENS = 32
DECODED_TOKENS = 64
SEED = 3
# Of a GPU's memory, for the KV of the model that is timed.
KV_SHARE = 0.4
# Models whose files are no larger than this together are all in memory while they are timed.
TOGETHER_BYTES = 1 << 30


def answering(
    engine: "Engine", tokenizer: "Tokenizer", name: str, max_tokens: int
) -> Callable[[list[int], list[list[int]]], list[list[int]]]:
    """From tasks' numbers, from 0, and their prompts' ids to those of greedy answers, without the token that ended each.

    Raises CompressError, when called, where the model gives no finite logits; ContextLengthError for a prompt too long.
    """
    from .scheduler import SamplingParams

    def answer(numbers: list[int], prompts: list[list[int]]) -> list[list[int]]:
        room = [max(1, engine.max_model_len - len(prompt)) for prompt in prompts]
        params = [SamplingParams(temperature=0, max_tokens=min(max_tokens, left)) for left in room]
        answers = []
        for number, completion in zip(numbers, _completions(engine, tokenizer, prompts, params), strict=True):
            if completion.finish_reason == "error":
                raise _no_numbers(name, f" for task {number + 1}")
            ids = completion.token_ids
            answers.append(ids[:-1] if ids and ids[-1] in engine.info.eos_token_ids else ids)
        return answers

    return answer


def writing(
    engine: "Engine", tokenizer: "Tokenizer", name: str
) -> Callable[[list[list[int]], list[dict[str, Any]]], list[str]]:
    """From the ids of prompts, and the sampling parameters of each by name, to the texts of their answers.

    Raises, when called, CompressError where the model gives no finite logits; InvalidRequestError for parameters that
    cannot be.
    """
    from .scheduler import SamplingParams

    def write(prompts: list[list[int]], how: list[dict[str, Any]]) -> list[str]:
        completions = _completions(engine, tokenizer, prompts, [SamplingParams(**one) for one in how])
        if any(completion.finish_reason == "error" for completion in completions):
            raise _no_numbers(name)
        return [completion.text for completion in completions]

    return write


def _completions(
    engine: "Engine", tokenizer: "Tokenizer", prompts: "list[list[int]]", params: "list[SamplingParams]"
) -> "list[Completion]":
    results = engine.generate(prompts, params, tokenizer=tokenizer, progress=sys.stderr.isatty())
    return [result.completions[0] for result in results]


def _no_numbers(name: str, where: str = "") -> CompressError:
    return CompressError(
        f"{name} gives logits that are not numbers (NaN or infinite){where}; its weights are broken, or its numbers "
        "overflow in this dtype (try float32)."
    )


def decoding(engine: "Engine") -> Callable[[int], float]:
    """From a number of sequences to the tokens per second of decoding them all together, prompts not counted.

    Without drafts: how often they are right depends on the text, and random tokens have none.
    """
    from .scheduler import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=DECODED_TOKENS, ignore_eos=True, drafters=())

    def decode(batch: int) -> float:
        rng = random.Random(SEED)
        waiting = set()
        for number in range(batch):
            prompt = [rng.randrange(engine.info.vocab_size) for _ in range(PROMPT_TOKENS)]
            waiting.add(f"{number}")
            engine.add_request(f"{number}", prompt, params)
        while waiting:
            waiting -= {delta.request_id for delta in engine.step() if delta.token_ids}
        tokens = 0
        start = time.perf_counter()
        while engine.has_work():
            tokens += sum(len(delta.token_ids) for delta in engine.step())
        return tokens / (time.perf_counter() - start)

    return decode


def speeds_of(
    settings: Settings, folders: Mapping[str, Path], progress: Callable[[str, int, int], None]
) -> "Mapping[str, list[Speed]]":
    """Of models as they are stored, by name, beside the first. Small ones take turns, so that what else the machine does
    hits all alike; of large ones there is one in memory at a time."""
    from .compress.evaluate.speed import measure_one_at_a_time, measure_speeds
    from .scheduler import Engine, EngineConfig

    def made(folder: Path) -> Callable[[int], float]:
        gc.collect()  # an engine's parts know each other, so that it is not gone with the last who knew it
        config = EngineConfig(
            model=str(folder),
            device=settings.device,
            threads=settings.threads,
            gpu_memory_utilization=KV_SHARE,
            prefix_caching=False,  # so that no round has its prompts computed already
        )
        return decoding(Engine(config))

    def told(done: int, of: int) -> None:
        progress("time", done, of)

    size = sum(file.stat().st_size for folder in folders.values() for file in folder.glob("*.safetensors"))
    if size <= TOGETHER_BYTES:
        return measure_speeds({name: made(folder) for name, folder in folders.items()}, progress=told)
    return measure_one_at_a_time(
        {name: partial(made, folder) for name, folder in folders.items()}, progress=told
    )
