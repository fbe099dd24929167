"""Compiles a folder of C on the machine that it serves, once for each state of its sources. Imports nothing of ours."""

import platform
import subprocess
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
COMPILE_SECONDS = 120
# What the C of the CPU's kernels is written for, best first: features of a chip, named as in /proc/cpuinfo.
KERNEL_CHIPS = {
    "AVX-512 VNNI": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    "AVX2": ("avx2", "fma"),
}


def chip_has(flags: Sequence[str]) -> bool:
    """Whether this is Linux on an x86-64 chip with all `flags`, named as in /proc/cpuinfo."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            found = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return set(flags) <= set(found)


def compiled(sources: Path, name: str, flags: Sequence[str]) -> Path:
    """The library made of all *.c in the folder `sources`, kept in the user's cache folder, or made where there is none.

    Args:
        name: what its file name begins with.
        flags: features of the chip that the code uses, named as in /proc/cpuinfo.

    Raises OSError or SubprocessError when it cannot be made.
    """
    files = sorted(sources.glob("*.c"))
    options = [*FLAGS, *(f"-m{flag.replace('_', '')}" for flag in flags)]
    digest = blake2b(" ".join(options).encode(), digest_size=8)
    for path in (*files, *sorted(sources.glob("*.h"))):
        digest.update(path.read_bytes())
    file_name = f"{name}-{digest.hexdigest()}.so"
    kept: Path | None = None
    try:
        folder = Path.home() / ".cache" / "penstock" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / file_name
        if kept.is_file():
            return kept
        made = Path(tempfile.mkdtemp(dir=folder)) / file_name
    except (OSError, RuntimeError):
        made = Path(tempfile.mkdtemp()) / file_name
    command = ["cc", *options, "-o", str(made), *map(str, files)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    if kept is None or made.parent.parent != kept.parent:
        return made
    made.replace(kept)  # whole or not at all, whoever else makes it
    made.parent.rmdir()
    return kept
