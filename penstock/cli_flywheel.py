"""`penstock flywheel`: reads its arguments, switches the settings file over and back. The work is in `tune/flywheel/`."""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_cache_examples import add_whose_arguments, examples_from_cache, whose_of
from .config import (
    FILE_ONLY,
    FILE_SETTING,
    NO_MODEL,
    PREFIX,
    TABLE,
    Settings,
    SettingsSource,
    add_arguments,
    is_secret,
    load_settings,
)
from .errors import ConfigError, TuneError

if TYPE_CHECKING:
    from .compress.texts import Example
    from .tune.flywheel.job import FlywheelJob
    from .tune.flywheel.report import Report

# What an interrupted job must be asked with again to be the same, besides what is looked at itself.
_SAME = (
    *("tenant", "namespace", "pii_pattern", "keep_pii"),
    *("layers", "student_quantize", "context", "seed", "minutes"),
    *("quality", "delta", "score", "max_tokens", "concurrency", "repeats"),
)
_PRECISIONS = ("none", "w8a8", "w8a16", "w4a16")


def add_flywheel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="student, router, report and settings: a new folder"
    )
    switching = parser.add_mutually_exclusive_group()
    switching.add_argument(
        "--switch",
        action="store_true",
        help="write over the settings file without asking, or with what DIR holds already",
    )
    switching.add_argument(
        "--no-switch", action="store_true", help="do not ask, and leave the settings file as it is"
    )
    switching.add_argument(
        "--back", action="store_true", help="put the settings file back as it was before the switch"
    )
    parser.add_argument(
        "--force", action="store_true", help="with --back: lose what was changed since the switch"
    )
    add_whose_arguments(parser.add_argument_group("of the cache"))
    privacy = parser.add_argument_group("what is left out")
    privacy.add_argument(
        "--pii-pattern",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="besides e-mail addresses, phone numbers, cards, IBANs, IP addresses and secrets; repeatable",
    )
    privacy.add_argument(
        "--keep-pii",
        action="append",
        default=[],
        metavar="NAME",
        help="do not apply the rule email, phone, card, iban, ip or secret; repeatable",
    )
    student = parser.add_argument_group("student")
    which = student.add_mutually_exclusive_group()
    which.add_argument("--layers", type=int, metavar="N", help="of the model's own (default: half of them)")
    which.add_argument(
        "--student", type=Path, metavar="DIR", help="one that is there already, which is not trained"
    )
    student.add_argument(
        "--student-quantize", choices=_PRECISIONS, default="w8a8", help="as it is served (%(default)s)"
    )
    student.add_argument(
        "--context", type=int, default=1024, metavar="N", help="tokens learnt of each text (%(default)s)"
    )
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--quality",
        type=float,
        default=0.95,
        metavar="Q",
        help="share of the answers that must go on saying the same (%(default)s)",
    )
    judging.add_argument(
        "--delta", type=float, default=0.05, metavar="D", help="the promise may fail in so many (%(default)s)"
    )
    judging.add_argument(
        "--score",
        choices=("agreement", "command"),
        default="agreement",
        help="what says the same: nearly the same words, or a command that does the same (%(default)s)",
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--minutes", type=float, default=30.0, metavar="M", help="about how long all takes (%(default)s)"
    )
    measuring.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)"
    )
    measuring.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="questions in flight (%(default)s)"
    )
    measuring.add_argument("--repeats", type=int, default=3, metavar="N", help="of each timing (%(default)s)")
    measuring.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random (%(default)s)"
    )
    add_arguments(parser, names=("model", "quantize", "device", "threads", "cache_path", "cache_max_bytes"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake, and where nothing is gained."""
    if arguments["back"]:
        return _back(arguments)
    _check(settings, arguments)
    output: Path = arguments["output"]
    if output.is_dir() and any(output.iterdir()):
        if not arguments["switch"]:
            raise ConfigError(
                f"{output} has something in it; name another folder, or give --switch to put into service what the flywheel "
                "wrote there.",
                param="output",
            )
        return _switch(settings, arguments, _written(output))
    report = _turn(settings, arguments)
    if report.objection is not None:
        raise TuneError(
            f"Nothing is to be gained: {report.objection}. The report is {output / 'flywheel.md'}; the settings stay "
            "as they are."
        )
    if arguments["switch"] or _agreed(arguments):
        return _switch(settings, arguments, report)
    from .tune.flywheel.run import SETTINGS

    print(f"The settings with it: penstock serve --config {output / SETTINGS}")
    return 0


def _check(settings: Settings, arguments: Mapping[str, Any]) -> None:
    """Before anything is read or loaded."""
    if arguments["output"] is None:
        raise ConfigError("output is missing; name a folder for what the flywheel makes.", param="output")
    for name in ("minutes", "max_tokens", "concurrency", "repeats"):
        if arguments[name] <= 0:
            raise ConfigError(f"{name} is {arguments[name]}; it must be above 0.", param=name)
    for name in ("quality", "delta"):
        if not 0 < arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be between 0 and 1.", param=name)
    if arguments["context"] < 2:
        raise ConfigError(f"context is {arguments['context']}; it must be at least 2.", param="context")
    if arguments["force"]:
        raise ConfigError("force is for --back; give that with it, or leave it out.", param="force")
    if arguments["switch"] and _file(arguments) is None:
        raise ConfigError("There is no settings file to switch; name it with --config.", param="config")
    if settings.model == NO_MODEL:
        raise ConfigError("model is 'none': no model is served here that could be a teacher.", param="model")
    if len(whose_of(arguments)) > 1:
        raise ConfigError(
            "A student learns from one tenant's traffic: what it was told, it may say to others. Name one.",
            param="tenant",
        )


def _turn(settings: Settings, arguments: Mapping[str, Any]) -> "Report":
    from .cli_long_job import interruptible, progress_bars
    from .compress.evaluate.plot import require_matplotlib
    from .tune.flywheel.report import lines
    from .tune.flywheel.run import turn

    require_matplotlib()
    job = _job(settings, arguments)

    def examples() -> "list[Example]":
        found = examples_from_cache(settings, arguments)
        print(found.summary, file=sys.stderr)
        return found.examples

    with interruptible() as check, progress_bars(check) as progress:
        try:
            report = turn(job, examples, progress)
        except KeyboardInterrupt:
            print("Interrupted; the same command goes on from here.", file=sys.stderr)
            raise
    print("\n".join(lines(report)))
    return report


def _job(settings: Settings, arguments: Mapping[str, Any]) -> "FlywheelJob":
    from xxhash import xxh3_128_hexdigest

    from .models.fingerprint import fingerprint
    from .models.location import resolve_model
    from .tune.flywheel.job import FlywheelJob
    from .tune.flywheel.pii import rules
    from .tune.flywheel.student import half_the_layers
    from .tune.flywheel.timing import Asking
    from .tune.flywheel.weights import teachers_weights
    from .tune.levers.settings_file import toml

    chosen = rules(arguments["pii_pattern"], arguments["keep_pii"])
    student: Path | None = arguments["student"]
    if student is not None:
        from .compress.distill.vocabulary import check_same_vocabulary
        from .models.tokenizer import Tokenizer

        check_same_vocabulary(Tokenizer.load(settings.model), Tokenizer.load(str(student)))
    teacher = teachers_weights(settings)
    present, text = _present(settings, arguments)
    identity: dict[str, Any] = {name: arguments[name] for name in _SAME}
    identity |= {
        "teacher": teacher,
        "cache": str(settings.cache_path),
        "whose": [one.id for one in whose_of(arguments)],
        "student": None if student is None else fingerprint(resolve_model(str(student))),
        "settings": xxh3_128_hexdigest(toml(present).encode()),
    }
    layers = arguments["layers"]
    return FlywheelJob(
        identity=identity,
        teachers_weights=teacher,
        settings=settings,
        present=present,
        text=text,
        rules=chosen,
        layers=half_the_layers(settings.model) if layers is None and student is None else layers,
        student=None if student is None else student.resolve(),
        quantize=arguments["student_quantize"],
        minutes=arguments["minutes"],
        quality=arguments["quality"],
        delta=arguments["delta"],
        score=arguments["score"],
        context=arguments["context"],
        asking=Asking(arguments["max_tokens"], arguments["concurrency"], arguments["repeats"]),
        seed=arguments["seed"],
        output=arguments["output"],
    )


def _present(settings: Settings, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings as the file would have them all, and its text; without a file, the text of those that are no defaults."""
    from .tune.levers.settings_file import toml

    file = _file(arguments)
    text = "" if file is None else file.read_text(encoding="utf-8")
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    plain = load_settings({} if file is None else {FILE_SETTING: file}, others)
    added = {
        name: getattr(settings, name)
        for name, entry in TABLE.items()
        if entry.about.group != FILE_ONLY
        and not is_secret(name)
        and getattr(settings, name) != getattr(plain, name)
    }
    added = {name: value for name, value in added.items() if isinstance(value, str | int | float | Path)}
    if file is None:
        text = toml(added)
    return {**tomllib.loads(text), **added}, text


def _file(arguments: Mapping[str, Any]) -> Path | None:
    """The settings file, whether a flag names it or the environment."""
    return SettingsSource(arguments, os.environ).file


def _agreed(arguments: Mapping[str, Any]) -> bool:
    file = _file(arguments)
    if arguments["no_switch"] or file is None or not sys.stdin.isatty():
        return False
    return input(f"Switch {file} over to it? [y/N] ").strip().lower() in ("y", "yes")


def _written(output: Path) -> "Report":
    import msgspec

    from .tune.flywheel.report import read_report
    from .tune.flywheel.run import FIGURES

    try:
        return read_report((output / FIGURES).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{output} is no folder of the flywheel: {error}", param="output") from error


def _switch(settings: Settings, arguments: Mapping[str, Any], report: "Report") -> int:
    from .tune.flywheel.switch import switch
    from .tune.flywheel.weights import check_weights

    if report.objection is not None:
        raise TuneError(f"{arguments['output']} is not to be switched on: {report.objection}.")
    if report.teacher != settings.model:
        raise ConfigError(
            f"{arguments['output']} was made for the model {report.teacher!r}, and {settings.model!r} is served now.",
            param="output",
        )
    check_weights(report.weights, settings, Path(report.student.folder))
    file = _file(arguments)
    assert file is not None, "_check"
    before = switch(
        file,
        report.changes,
        lambda changed: load_settings({**arguments, FILE_SETTING: str(changed)}, os.environ),
    )
    print(f"{file} is switched; as it was, it is in {before}.")
    print("Restart `penstock serve` for it: a server that runs goes on as it is.")
    print(f"Back: penstock flywheel --config {file} --back")
    return 0


def _back(arguments: Mapping[str, Any]) -> int:
    from .tune.flywheel.switch import back

    file = _file(arguments)
    if file is None:
        raise ConfigError("Name the settings file that is to be put back with --config.", param="config")
    for line in back(file, force=arguments["force"]):
        print(f"lost: {line}")
    print(f"{file} is as it was before the switch. Restart `penstock serve` for it.")
    return 0
