"""Compiles the library on the machine that it serves, once for each state of its sources."""

import platform
import subprocess
import tempfile
from hashlib import blake2b
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
CHIP = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
COMPILE_SECONDS = 120


def chip_has_vnni() -> bool:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return set(CHIP) <= set(flags)


def compiled() -> Path:
    """The library, kept in the user's cache folder, or made anew where there is none.

    Raises OSError or SubprocessError when it cannot be made.
    """
    sources = sorted(FOLDER.glob("*.c"))
    options = [*FLAGS, *(f"-m{name.replace('_', '')}" for name in CHIP)]
    digest = blake2b(" ".join(options).encode(), digest_size=8)
    for path in (*sources, *sorted(FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    name = f"penstock-{digest.hexdigest()}.so"
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
    command = ["cc", *options, "-o", str(made), *map(str, sources)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    if kept is None or made.parent.parent != kept.parent:
        return made
    made.replace(kept)  # whole or not at all, whoever else makes it
    made.parent.rmdir()
    return kept
