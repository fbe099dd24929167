"""`penstock eval sparse` and `sparse-prompts`: what attention to the keys that matter saves, and costs, on one model."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .config import Settings
from .errors import CompressError, ConfigError


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    masses = _masses(arguments["mass"])
    for name in ("decoded", "needles"):
        if arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least 1.", param=name)
    if settings.device == "cuda":
        raise ConfigError("device is 'cuda'; sparse attention is measured on a CPU so far.", param="device")
    text = None if arguments["text"] is None else _read(Path(arguments["text"]))

    from .compress import prompt_eval, prompt_report, sparse_eval, sparse_report
    from .compress.evaluate.plot import require_matplotlib
    from .compress.folder import check_writable
    from .models.loading import load_model
    from .models.tokenizer import Tokenizer

    folder = None if arguments["output"] is None else Path(arguments["output"])
    if folder is not None:  # not after minutes of measuring
        check_writable(folder, folder)
        require_matplotlib()
    model = load_model(settings.model, dtype=settings.dtype, quantize=settings.quantize, device="cpu")
    if arguments["decoded"] >= model.max_model_len:
        raise ConfigError(
            f"decoded is {arguments['decoded']}; it must be below the model's context of {model.max_model_len}.",
            param="decoded",
        )
    tokenizer = Tokenizer.load(settings.model)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    asked: dict[str, Any] = {
        "masses": masses,
        "decoded": arguments["decoded"],
        "needles": arguments["needles"],
        "progress": lambda line: print(line, file=sys.stderr, flush=True),
    }
    ids = None if text is None else encode(text)
    if arguments["what"] == "sparse-prompts":
        prompts = prompt_eval.evaluate_prompts(model, encode, ids, **asked)
        _write(folder, prompt_report.NAME, prompt_report.as_dict(prompts), prompt_report.tables(prompts))
        return 0
    report = sparse_eval.evaluate(model, encode, ids, **asked)
    _write(
        folder,
        sparse_report.NAME,
        sparse_report.as_dict(report),
        sparse_report.tables(report),
        partial(sparse_report.draw, report),
    )
    return 0


def _write(
    folder: Path | None,
    name: str,
    report: dict[str, Any],
    lines: Iterable[str],
    draw: Callable[[Path], None] | None = None,
) -> None:
    """Prints the tables, and leaves them and the report in `folder`, beside what else is there: all of it, or nothing."""
    text = "\n".join(lines)
    print(text, flush=True)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".partial-") as staging:
            whole = Path(staging) / name
            whole.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            whole.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
            if draw is not None:
                draw(whole.with_suffix(".png"))
            for file in Path(staging).iterdir():
                os.replace(file, folder / file.name)
    except OSError as error:
        reason = error.strerror or error
        raise CompressError(f"{folder} cannot be written: {reason}. What was measured is printed.") from error


def _masses(text: str) -> list[float]:
    try:
        masses = sorted({float(part) for part in text.split(",")})
    except ValueError:
        masses = []
    if not masses or not all(0 < mass <= 1 for mass in masses):
        raise ConfigError(
            f"mass is {text!r}; it must be numbers above 0 and at most 1, separated by commas.", param="mass"
        )
    return masses


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"The text {file} cannot be read: {reason}.", param="text") from error
