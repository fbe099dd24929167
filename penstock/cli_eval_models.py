"""`penstock eval models`: accuracy, speed and size of several models beside each other.

Checks what is asked and loads models; the measures are in `compress/evaluate/`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_eval import MAX_TOKENS
from .cli_eval_loading import Loaded, load, refuse_twice
from .cli_model_spec import ModelSpec, model_spec
from .config import Settings
from .errors import CompressError, ConfigError

if TYPE_CHECKING:
    from .compress.evaluate import Comparison
    from .compress.evaluate.findings import Findings
    from .compress.evaluate.report import Report
    from .compress.evaluate.tasks import Answers, Task
    from .compress.texts import Example


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    specs = [model_spec(text) for text in arguments["models"]]
    _check(arguments, specs)
    output = None if arguments["output"] is None else Path(arguments["output"])

    from .compress.evaluate import plot
    from .compress.evaluate.report import tables
    from .compress.evaluate.tasks import read_tasks
    from .compress.folder import check_target
    from .compress.texts import read_examples

    if output is not None:
        check_target(output, force=arguments["force"])
        plot.require_matplotlib()
    examples = None if arguments["text"] is None else read_examples(Path(arguments["text"]))
    tasks = None if arguments["tasks"] is None else read_tasks(Path(arguments["tasks"]))
    models = [load(spec, settings, len(specs)) for spec in specs]
    reference = None if examples is None else _reference(models, settings, arguments["reference"])
    with _findings(output, [*models, *([reference] if reference else [])], arguments) as findings:
        comparisons, answers = None, None
        if examples is not None and reference is not None:
            comparisons = _compare(models, reference, arguments["context"], examples, findings)
        if tasks is not None:
            answers = _answer(models, tasks, arguments["max_tokens"] or MAX_TOKENS, findings)
        report = _report(models, arguments, comparisons, answers)
        print("\n".join(tables(report)))
        if output is not None:
            _write(output, report, tasks, answers, force=arguments["force"])
    return 0


@contextmanager
def _findings(
    output: Path | None, models: "Sequence[Loaded]", arguments: Mapping[str, Any]
) -> "Iterator[Findings]":
    """Those of an earlier call with the same models, texts, tasks and output, which ended before that was written."""
    from .compress.evaluate.findings import Findings
    from .compress.folder import work_folder

    if output is None:
        yield Findings()
        return
    identity = {
        "models": [model.identity for model in models],
        "files": [_digest(arguments[name]) for name in ("text", "tasks")],
        "context": arguments["context"],
        "max_tokens": arguments["max_tokens"],
    }
    with work_folder(output, identity) as work:
        yield Findings(work.path / "findings.jsonl")


def _digest(file: str | None) -> str | None:
    import xxhash

    return None if file is None else xxhash.xxh3_128_hexdigest(Path(file).read_bytes())


def _check(arguments: Mapping[str, Any], specs: Sequence[ModelSpec]) -> None:
    for name, of in (("max_tokens", "tasks"), ("force", "output")):
        if arguments[name] and arguments[of] is None:
            raise ConfigError(f"{name} is of --{of}, which is not given.", param=name)
    for name, least in (("context", 2), ("max_tokens", 1)):
        if arguments[name] is not None and arguments[name] < least:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least {least}.", param=name)
    if not (arguments["text"] or arguments["tasks"] or arguments["speed"]):
        raise ConfigError(
            "Say what to measure: --text FILE, --tasks FILE, --speed, or several.", param="text"
        )
    if arguments["reference"] is not None and arguments["text"] is None:
        raise ConfigError(
            "reference is what texts are compared with; give --text FILE too.", param="reference"
        )
    refuse_twice(specs)


def _compare(
    models: Sequence[Loaded],
    reference: Loaded,
    context: int,
    examples: "Sequence[Example]",
    findings: "Findings",
) -> "list[Comparison]":
    from .compress.evaluate import compare_all
    from .compress.texts import tokenize

    for model in models:
        _refuse_other_vocabulary(model, reference)
    context = min(context, *(model.scorer.max_tokens for model in (reference, *models)))
    texts = tokenize(reference.tokenizer, examples, context)
    with _bar("text") as progress:
        candidates = [model.scorer for model in models]
        return compare_all(candidates, reference.scorer, texts, progress=progress, findings=findings)


def _reference(models: Sequence[Loaded], settings: Settings, asked: str | None) -> Loaded:
    for model in models:
        if asked is None or asked == model.spec.text:
            return model
    assert asked is not None
    return load(model_spec(asked), settings, len(models) + 1)


def _refuse_other_vocabulary(model: Loaded, reference: Loaded) -> None:
    """`compare_all` sees to the sizes: where those differ, that is the better thing to say."""
    from .models.vocabulary import vocabulary_difference

    if model.scorer.vocab_size != reference.scorer.vocab_size:
        return
    folders = (Path(loaded.engine.info.path) for loaded in (model, reference))
    if difference := vocabulary_difference(*folders):
        raise CompressError(
            f"{model.spec.text} has another vocabulary than {reference.spec.text}: {difference}. Only models of one "
            "vocabulary can be compared token by token; leave --text out to compare their answers."
        )


def _answer(
    models: Sequence[Loaded], tasks: "Sequence[Task]", max_tokens: int, findings: "Findings"
) -> "list[Answers]":
    from .cli_engine_runs import answering
    from .compress.evaluate.tasks import answer_tasks

    return [
        answer_tasks(
            tasks,
            model.tokenizer,
            answering(model.engine, model.tokenizer, model.spec.text, max_tokens),
            name=model.spec.text,
            longest=model.engine.max_model_len - 1,
            findings=findings,
        )
        for model in models
    ]


def _report(
    models: Sequence[Loaded],
    arguments: Mapping[str, Any],
    comparisons: "list[Comparison] | None",
    answers: "list[Answers] | None",
) -> "Report":
    from .cli_engine_runs import decoding
    from .compress.evaluate.accuracy import accuracy
    from .compress.evaluate.report import Report, Row
    from .compress.evaluate.speed import measure_speeds
    from .compress.evaluate.weight_bytes import weight_bytes
    from .compress.machine import machine

    rows = []
    for number, model in enumerate(models):
        row = Row(model.spec.text, model.precision, weight_bytes(model.engine.runner.model.module))
        if comparisons is not None:
            row.comparison = comparisons[number]
        if answers is not None:
            row.accuracy = accuracy(answers[number].right, answers[0].right, answers[0].topics)
        rows.append(row)
    if arguments["speed"]:
        with _bar("round") as progress:
            speeds = measure_speeds(
                {model.spec.text: decoding(model.engine) for model in models}, progress=progress
            )
        for row in rows:
            row.speeds = speeds[row.name]
    return Report(
        reference=arguments["reference"] or models[0].spec.text,
        machine=machine(models[0].engine.info.device),
        texts=arguments["text"],
        tasks=arguments["tasks"],
        rows=rows,
    )


def _write(
    output: Path,
    report: "Report",
    tasks: "Sequence[Task] | None",
    answers: "list[Answers] | None",
    *,
    force: bool,
) -> None:
    from .compress.evaluate import plot
    from .compress.evaluate.report import NAME, as_dict, tables
    from .compress.folder import new_folder

    with new_folder(output, force=force) as folder:
        (folder / f"{NAME}.json").write_text(json.dumps(as_dict(report), indent=1) + "\n", encoding="utf-8")
        (folder / f"{NAME}.md").write_text("\n".join(tables(report)) + "\n", encoding="utf-8")
        if tasks is not None and answers is not None:
            with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
                for number, task in enumerate(tasks):
                    line = {
                        "asked": task.asked,
                        "answers": {
                            row.name: {"text": given.texts[number], "right": given.right[number]}
                            for row, given in zip(report.rows, answers, strict=True)
                        },
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        plot.draw(report, folder)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """On a terminal's stderr; told what is done, and of how much."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield progress
