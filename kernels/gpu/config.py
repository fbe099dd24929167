"""How a kernel is launched: tile sizes, warps, stages. Data, chosen when the engine loads, never searched for while serving.

`kernels/tuned/` holds what was measured, a file for each GPU (its README.md has the format; `bench/tune_kernels.py` writes
it). What a file may say is in `tunable.py`. Where nothing was measured, a kernel's own default for the chip's generation
serves.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .tunable import STAGES, TUNABLE, Tunable

TUNED_FOLDER = Path(__file__).parent.parent / "tuned"
CHIPS = ("sm_90", "sm_80", "gfx942")
# What a file may say beside a configuration: how long it took there, and the default.
MEASURED = {"microseconds", "default_microseconds"}


@dataclass(frozen=True, slots=True)
class Config:
    """`tiles` are constexpr arguments of the kernel: {"BLOCK_M": 128, ...}."""

    tiles: Mapping[str, int]
    num_warps: int
    num_stages: int


Choices = Mapping[tuple[str, str], Config]
"""By operation and case."""


@dataclass(frozen=True, slots=True)
class TunedFile:
    """What was measured on one GPU: its `chip`, "sm_90", for the ahead-of-time check, and what won."""

    gpu: str
    chip: str
    choices: Choices


# By device; None: chips that are not here, which kernels are compiled for.
_choices: dict[torch.device | None, Choices] = {None: {}}


def choose(operation: str, case: str, default: Config, device: torch.device | None) -> Config:
    """What was measured for `case` on `device`, else `default`.

    `operation` is the module's name ("int8_matmul"), `case` one of those that `tunable.py` lists for it. A file is read at
    the first launch on its device, or before, by `load`; from then on this is two look-ups in dicts.
    """
    found = _choices.get(device)
    if found is None:
        found = load(device)
    return found.get((operation, case), default)


def fitting(config: Config, dtype: torch.dtype, device: torch.device) -> Config:
    """`config`, with smaller tiles where a GPU multiplies float32.

    That goes without matrix instructions, and tiles made for half precisions need more registers and shared memory than
    there are. (The interpreter has room for any tile, and prefers few.)
    """
    if dtype is not torch.float32 or device.type != "cuda":
        return config
    least = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_G": 1}
    tiles = {
        name: max(least[name], size // 8) if name in least else size for name, size in config.tiles.items()
    }
    return Config(tiles, config.num_warps, num_stages=1)


def load(device: torch.device | None) -> Choices:
    """What was measured on the GPU that `device` is; nothing, where it was never tuned.

    Raises ValueError naming file, key and remedy where a file says what cannot be.
    """
    if device not in _choices:
        assert device is not None
        path = path_of(gpu) if (gpu := gpu_name(device)) else None
        found = read_tuned(path) if path is not None and path.is_file() else None
        if path is not None and found is not None and found.chip != arch_of(device):
            raise _refusal(path, f"chip is {found.chip}, but {gpu} is {arch_of(device)}")
        _choices[device] = {} if found is None else found.choices
    return _choices[device]


def use(choices: Choices, device: torch.device | None) -> None:
    """From now on launches on `device` take `choices`: for tuning, and for compiling ahead of time (None)."""
    _choices[device] = choices


def gpu_name(device: torch.device) -> str:
    """ "NVIDIA H200"; "" where kernels are interpreted, for which nothing is tuned."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def path_of(gpu: str) -> Path:
    """Where the measured configurations of a GPU are, if there are any: "NVIDIA H200" -> tuned/NVIDIA_H200.json."""
    return TUNED_FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '_', gpu)}.json"


def tuned_files() -> list[Path]:
    return sorted(TUNED_FOLDER.glob("*.json"))


def read_tuned(path: Path) -> TunedFile:
    """Raises ValueError naming file, key and remedy where it says what cannot be."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refusal(path, f"it is no JSON ({error})") from error
    _same_keys(path, "the file", said, {"gpu", "chip", "measured", "configurations"})
    if said["chip"] not in CHIPS:
        raise _refusal(path, f"chip is {said['chip']!r}; it must be {' or '.join(CHIPS)}")
    choices = {}
    for operation, cases in _checked_keys(path, "configurations", said["configurations"], TUNABLE).items():
        for case, entry in _checked_keys(path, operation, cases, TUNABLE[operation]).items():
            where = f"{operation} {case}"
            wanted = {"tiles", "num_warps", "num_stages"}
            _same_keys(path, where, entry, wanted, MEASURED)
            config = Config(entry["tiles"], entry["num_warps"], entry["num_stages"])
            check(path, where, config, TUNABLE[operation][case])
            choices[operation, case] = config
    return TunedFile(str(said["gpu"]), said["chip"], choices)


def check(path: Path, where: str, config: Config, tunable: Tunable) -> None:
    """Raises ValueError unless every number of `config` is one that `tunable` allows."""
    _same_keys(path, f"tiles of {where}", config.tiles, set(tunable.tiles))
    values = {**config.tiles, "num_warps": config.num_warps, "num_stages": config.num_stages}
    allowed = {**tunable.tiles, "num_warps": tunable.warps, "num_stages": STAGES}
    for key, value in values.items():
        # True is an int in Python, and 64.0 equals 64.
        if type(value) is not int or value not in allowed[key]:
            reason = f" ({tunable.because})" if tunable.because else ""
            numbers = " or ".join(map(str, allowed[key]))
            raise _refusal(path, f"{key} of {where} is {value!r}; it must be {numbers}{reason}")


def as_json(config: Config) -> dict[str, Any]:
    """As a file holds it."""
    return {**asdict(config), "tiles": dict(config.tiles)}


def _checked_keys(path: Path, where: str, found: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise _refusal(path, f"{where} is {found!r}; it must be an object")
    for key in found:
        if key not in known:
            raise _refusal(path, f"{where} has {key!r}; it may have {', '.join(known)}")
    return found


def _same_keys(
    path: Path, where: str, found: Any, wanted: set[str], optional: set[str] | None = None
) -> None:
    known = dict.fromkeys(sorted(wanted) + sorted(optional or ()))
    missing = wanted - set(_checked_keys(path, where, found, known))
    if missing:
        raise _refusal(path, f"{where} lacks {', '.join(sorted(missing))}")


def _refusal(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: {what}. Correct it, measure again with bench/tune_kernels.py, or delete the file to use the defaults."
    )


@cache
def arch_of(device: torch.device) -> str:
    """The generation whose defaults serve on `device`: one of those compiled ahead of time."""
    if torch.version.hip:
        return "gfx942"
    if device.type != "cuda":
        return "sm_80"
    return "sm_90" if torch.cuda.get_device_capability(device) >= (9, 0) else "sm_80"
