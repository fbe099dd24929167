"""Lengths of time as people write them on a command line."""

from .errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(text: str, name: str) -> float:
    """`name`: of the option that the text was given to. Raises ConfigError."""
    unit = text[-1:] if text[-1:] in _UNITS else ""
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(
            f"{name} is {text!r}; it must be seconds, or 30m, 12h, 7d, 2w.", param=name.replace("-", "_")
        )
    return seconds
