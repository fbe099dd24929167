"""`penstock eval harness`: tasks of lm-evaluation-harness, of several models beside each other, through their engines.

Checks what is asked and runs the harness; what the harness asks of a model is in `compress/evaluate/harness.py`.
"""

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_engine_runs import writing
from .cli_eval_loading import Loaded, load, refuse_twice
from .cli_model_spec import model_spec
from .config import Settings
from .errors import CompressError, ConfigError, PenstockError

if TYPE_CHECKING:
    from .compress.evaluate.harness_report import HarnessReport


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    specs = [model_spec(text) for text in arguments["models"]]
    refuse_twice(specs)
    for name, least in (("limit", 1), ("shots", 0)):
        if arguments[name] is not None and arguments[name] < least:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least {least}.", param=name)
    if arguments["force"] and arguments["output"] is None:
        raise ConfigError("force is of --output, which is not given.", param="force")
    output = None if arguments["output"] is None else Path(arguments["output"])

    from .compress.evaluate.harness_report import tables
    from .compress.folder import check_target

    if output is not None:
        check_target(output, force=arguments["force"])
    tasks = _tasks(arguments["tasks"], arguments["include"])
    models = [load(spec, settings, len(specs)) for spec in specs]
    for model in models:
        if arguments["chat"] and model.tokenizer.chat_template is None:
            raise CompressError(f"{model.spec.text} has no chat template; leave --chat out.", param="chat")
    with _kept(output, models, arguments) as work:
        report = _measured(models, tasks, arguments, work)
        print("\n".join(tables(report)))
        if output is not None:
            _write(output, report, force=arguments["force"])
    return 0


def _tasks(names: str, include: str | None) -> tuple[Any, list[str]]:
    """The harness's manager of tasks, and those that are asked for. Raises PenstockError."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise CompressError(
            f"This needs lm-evaluation-harness ({error}): pip install 'penstock[harness]'.", param="tasks"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include is not None and not Path(include).is_dir():
        raise ConfigError(f"include is {include}, which is no folder.", param="include")
    manager = TaskManager(include_path=include)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise ConfigError("tasks names none; give one, or several with commas between.", param="tasks")
    for name in asked:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f"; did you mean {near[0]}?" if near else "; --include FOLDER adds your own."
            raise ConfigError(f"The harness knows no task {name!r}{hint}", param="tasks")
    return manager, asked


@contextmanager
def _kept(
    output: Path | None, models: Sequence[Loaded], arguments: Mapping[str, Any]
) -> Iterator[Path | None]:
    """Where the harness keeps its answers until the output is written; None where there is no output."""
    from .compress.folder import work_folder

    if output is None:
        yield None
        return
    asked = {name: arguments[name] for name in ("tasks", "include", "limit", "shots", "chat")}
    with work_folder(output, asked | {"models": [model.identity for model in models]}) as work:
        yield work.path


def _measured(
    models: Sequence[Loaded], tasks: tuple[Any, list[str]], arguments: Mapping[str, Any], work: Path | None
) -> "HarnessReport":
    from lm_eval import simple_evaluate

    from .compress.evaluate.harness import Harnessed
    from .compress.evaluate.harness_report import HarnessReport, scores
    from .compress.machine import machine

    manager, names = tasks
    found, shots = {}, {}
    for number, model in enumerate(models):
        with _one_line():
            results = simple_evaluate(
                Harnessed(
                    model.tokenizer, model.scorer, writing(model.engine, model.tokenizer, model.spec.text)
                ),
                tasks=names,
                task_manager=manager,
                num_fewshot=arguments["shots"],
                limit=arguments["limit"],
                apply_chat_template=arguments["chat"],
                use_cache=None if work is None else str(work / f"model-{number}"),
                bootstrap_iters=0,  # intervals are our own, of the samples
            )
        found[model.spec.text], shots = scores(results), results["n-shot"]
    precisions = {model.spec.text: model.precision for model in models}
    return HarnessReport(machine(models[0].engine.info.device), shots, precisions, found)


@contextmanager
def _one_line() -> Iterator[None]:
    """What goes wrong in the harness (no network, a dataset that is not there) as a line, with its kind."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:
        first, *_ = [*str(error).splitlines(), ""]
        raise CompressError(f"lm-evaluation-harness gave up: {type(error).__name__}: {first}") from error


def _write(output: Path, report: "HarnessReport", *, force: bool) -> None:
    from .compress.evaluate.harness_report import NAME, as_dict, tables
    from .compress.folder import new_folder

    with new_folder(output, force=force) as folder:
        (folder / f"{NAME}.json").write_text(json.dumps(as_dict(report), indent=1) + "\n", encoding="utf-8")
        (folder / f"{NAME}.md").write_text("\n".join(tables(report)) + "\n", encoding="utf-8")
