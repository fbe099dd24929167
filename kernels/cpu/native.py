"""The one function of `int8_rows.c`, compiled on the machine that it serves, where that has a C compiler and AVX-512 VNNI.

Anything amiss (no compiler, another chip, a result that is not bit-equal to torch's) leaves torch's operators in place:
slower, and the same numbers.
"""

import ctypes
import functools
import logging
import platform
import subprocess
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("int8_rows.c")
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
CHIP = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
COMPILE_SECONDS = 60
# Products of fewer weights are over before a second thread is awake.
ONE_THREAD = 1 << 17

Rows = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@functools.cache
def int8_rows() -> Rows | None:
    """x [M, K] float32, weight [N, K] int8, offsets [N] int32 (128 times each row's sum), weight_scale [N], bias [N] or
    None -> [M, N] float32. None where it cannot be had."""
    if not _chip_has_vnni():
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("int8_rows.c is not compiled (%s); torch's operators serve instead", error)
        return None
    function = library.penstock_int8_rows
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long]
    function.argtypes += [ctypes.c_void_p] * 6 + [ctypes.c_int]

    def rows(x: Tensor, weight: Tensor, offsets: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        (m, k), n = x.shape, weight.shape[0]
        out = torch.empty(m, n)
        scratch = torch.empty(m * (-(-k // 64) * 64 + 4), dtype=torch.uint8)
        scale_at = scratch.data_ptr() + m * (-(-k // 64) * 64)
        function(
            x.data_ptr(),
            m,
            k,
            weight.data_ptr(),
            n,
            offsets.data_ptr(),
            weight_scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            scale_at,
            1 if n * k < ONE_THREAD else torch.get_num_threads(),
        )
        return out

    if not _is_exact(rows):
        log.warning("what %s computes is not what torch does; torch's operators serve instead", SOURCE.name)
        return None
    return rows


def _is_exact(rows: Rows) -> bool:
    """Tried once, on rows that need every part of it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (21, 200), generator=generator, dtype=torch.int8)
    x, weight_scale, bias = (torch.randn(size, generator=generator) for size in ((5, 200), (21,), (21,)))
    act_scale = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12).div_(127)
    sums = torch._int_mm(torch.div(x, act_scale).round_().to(torch.int8), weight.t())
    expected = sums.float().mul_(weight_scale).mul_(act_scale).add_(bias)
    offsets = weight.sum(dim=1, dtype=torch.int32).mul_(128)
    return torch.equal(rows(x, weight, offsets, weight_scale, bias), expected)


def _chip_has_vnni() -> bool:
    if platform.machine() != "x86_64":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return set(CHIP) <= set(flags)


def _compiled() -> Path:
    """The library, made once for each source and kept in the user's cache folder, or made anew where there is none.

    Raises OSError or SubprocessError when it cannot be made.
    """
    source = SOURCE.read_bytes()
    options = [*FLAGS, *(f"-m{name.replace('_', '')}" for name in CHIP)]
    name = f"int8_rows-{blake2b(source + ' '.join(options).encode(), digest_size=8).hexdigest()}.so"
    kept: Path | None = None
    try:
        folder = Path.home() / ".cache" / "penstock" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / name
        if kept.is_file():
            return kept
        made = Path(tempfile.mkdtemp(dir=folder)) / name
    except (OSError, RuntimeError):
        made = Path(tempfile.mkdtemp()) / name
    command = ["cc", *options, "-o", str(made), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    if kept is None or made.parent.parent != kept.parent:
        return made
    made.replace(kept)  # whole or not at all, whoever else makes it
    made.parent.rmdir()
    return kept
