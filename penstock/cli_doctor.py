"""`penstock doctor`: whether `penstock serve` with the same settings would work, line by line."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .config import TABLE, SettingsSource, is_secret
from .doctor import Finding, examine
from .errors import ConfigError


def run(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """1 when something would not work. Unlike other commands it reads the settings itself: that they can be read is a
    finding, too."""
    failed = False
    as_json = arguments["json"]
    found = []
    for finding in _findings(arguments, environment):
        failed |= finding.level == "fail"
        found.append(msgspec.to_builtins(finding))
        if not as_json:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:4}  {finding.check}: {finding.text}{remedy}", flush=True)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": found}))
    return int(failed)


def _findings(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Finding]:
    source = SettingsSource(arguments, environment)
    try:
        settings = source.load()
    except ConfigError as error:
        yield Finding("settings", "fail", error.message, "nothing else was checked")
        return
    where = "of flags, environment and defaults" if source.file is None else f"of {source.file}"
    yield Finding("settings", "ok", f"{where} are valid")
    has_keys = any(getattr(settings, name) for name in TABLE if is_secret(name))
    yield from _secrecy(source.file, arguments, has_keys=has_keys)
    yield from examine(settings)


def _secrecy(file: Path | None, arguments: Mapping[str, Any], *, has_keys: bool) -> Iterator[Finding]:
    """Where others on this machine could read a key."""
    if any(is_secret(name) for name in arguments if name in TABLE):
        yield Finding(
            "secrecy",
            "warn",
            "keys on a command line are seen by everybody on this machine (ps)",
            "put them into the settings file, or into variables as PENSTOCK_API_KEYS",
        )
    if file is not None and has_keys and os.stat(file).st_mode & 0o077:
        yield Finding(
            "secrecy", "warn", f"{file} may be read by others, and there are keys", f"chmod 600 {file}"
        )
