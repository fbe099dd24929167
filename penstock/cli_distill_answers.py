"""The teacher's answers to a file of prompts, through the engine, for `penstock distill --generate`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .cli_jsonl import drop_torn_end, read_jsonl, work_through
from .cli_talk import LocalModel
from .config import Settings
from .errors import CompressError

if TYPE_CHECKING:
    from .compress.distill.job import DistillJob
    from .compress.texts import Example

CONCURRENCY = 64


@contextmanager
def teachers_answers(settings: Settings, job: "DistillJob", prompts: Path) -> "Iterator[list[Example]]":
    """The examples of `prompts`, each with the teacher's greedy answer in place of its last one.

    They are kept beside the output until the block ends without an error, so that what was cut goes on. Answers that the
    teacher did not end are left out. Raises PenstockError where none is left, or the engine fails.
    """
    import uvloop
    import xxhash

    from .compress.folder import work_folder
    from .compress.texts import read_examples
    from .models.fingerprint import fingerprint
    from .models.location import resolve_model

    examples = [_prompt(example) for example in read_examples(prompts)]
    teacher = msgspec.structs.replace(settings, model=job.teacher)
    identity = {
        "teacher": fingerprint(resolve_model(job.teacher), settings.quantize),
        "prompts": xxhash.xxh3_128_hexdigest(prompts.read_bytes()),
        "max_tokens": job.max_tokens,
    }
    with work_folder(job.output.with_name(f"{job.output.name}.answers"), identity) as work:
        file = work.path / "answers.jsonl"
        file.touch()
        drop_torn_end(file)
        answers = {line["index"]: line["text"] for line in read_jsonl(file)}
        todo = [index for index in range(len(examples)) if index not in answers]
        if todo:
            uvloop.run(_answer_all(teacher, examples, todo, job.max_tokens, file))
            answers = {line["index"]: line["text"] for line in read_jsonl(file)}
        answered = [_answered(examples[i], text) for i, text in sorted(answers.items()) if text is not None]
        if not answered:
            raise CompressError(
                f"The teacher ended none of its {len(examples)} answers within {job.max_tokens} tokens of prompt and "
                "answer; give a higher --context, or shorter prompts."
            )
        yield answered


async def _answer_all(
    settings: Settings, examples: "list[Example]", todo: list[int], max_tokens: int, file: Path
) -> None:
    from .compress.texts import prompt_ids
    from .models.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(settings.model)
    model = LocalModel(settings)
    await model.start()
    most = min(max_tokens, model.max_model_len)

    async def answer(index: int) -> bool:
        left = most - len(prompt_ids(tokenizer, examples[index]))
        text = await _answer(model, _request(examples[index]), left) if left > 0 else None
        results.write(json.dumps({"index": index, "text": text}, ensure_ascii=False) + "\n")
        results.flush()
        return True

    try:
        with file.open("a", encoding="utf-8") as results:
            await work_through(todo, answer, concurrency=CONCURRENCY, done=len(examples) - len(todo))
    finally:
        await model.close()


async def _answer(model: LocalModel, request: Mapping[str, Any], most: int) -> str | None:
    """Greedy; None where the teacher does not end within `most` tokens."""
    texts = []
    async with aclosing(model.answer(request, {"temperature": 0.0, "max_tokens": most})) as pieces:
        async for piece in pieces:
            texts.append(piece.text)
    return "".join(texts) if piece.finish_reason == "stop" else None


def _prompt(example: "Example") -> "Example":
    """Without the answer at its end; a plain text is what is to be gone on from."""
    if not example.messages:
        return replace(example, prompt=example.prompt or example.completion, completion="")
    if example.messages[-1].get("role") == "assistant":
        return replace(example, messages=example.messages[:-1])
    return example


def _request(prompt: "Example") -> dict[str, Any]:
    if prompt.messages:
        return {"messages": [dict(message) for message in prompt.messages]}
    return {"prompt": prompt.prompt}


def _answered(prompt: "Example", text: str) -> "Example":
    if prompt.messages:
        return replace(prompt, messages=(*prompt.messages, {"role": "assistant", "content": text}))
    return replace(prompt, completion=text)
