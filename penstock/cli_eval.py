"""`penstock eval`: what a lever costs in accuracy, and what it saves, on one model."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Settings
from .errors import ConfigError


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    masses = _masses(arguments["mass"])
    for name in ("decoded", "needles"):
        if arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least 1.", param=name)
    if settings.device == "cuda":
        raise ConfigError("device is 'cuda'; sparse attention is measured on a CPU so far.", param="device")
    text = None if arguments["text"] is None else _read(Path(arguments["text"]))

    from .compress.sparse_eval import evaluate
    from .compress.sparse_report import NAME, as_dict, draw, tables
    from .models.loading import load_model
    from .models.tokenizer import Tokenizer

    model = load_model(settings.model, dtype=settings.dtype, quantize=settings.quantize, device="cpu")
    if arguments["decoded"] >= model.max_model_len:
        raise ConfigError(
            f"decoded is {arguments['decoded']}; it must be below the model's context of {model.max_model_len}.",
            param="decoded",
        )
    tokenizer = Tokenizer.load(settings.model)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    report = evaluate(
        model,
        encode,
        None if text is None else encode(text),
        masses=masses,
        decoded=arguments["decoded"],
        needles=arguments["needles"],
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    lines = "\n".join(tables(report))
    print(lines)
    if arguments["output"] is not None:
        folder = Path(arguments["output"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.json").write_text(json.dumps(as_dict(report), indent=1) + "\n", encoding="utf-8")
        (folder / f"{NAME}.md").write_text(lines + "\n", encoding="utf-8")
        draw(report, folder / f"{NAME}.png")
    return 0


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
