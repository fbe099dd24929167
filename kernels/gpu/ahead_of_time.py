"""Compiles every kernel as it will be launched, for chips that are not here, and reads what the compiler made of it.

That is with the defaults for every chip, and with what was measured on a GPU (`kernels/tuned/`) for that GPU's.

    python -m penstock.kernels.gpu.ahead_of_time            compile all, complain about what is wrong
    python -m penstock.kernels.gpu.ahead_of_time --table    print kernels/RESOURCES.md

Triton keeps compiled kernels by a hash of their source and options, so only what changed is compiled again. Each module and
architecture has a process of its own: a failed assertion in Triton's compiler ends the process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from .config import CHIPS, Config, as_json, read_tuned, tuned_files, use
from .variant import Variant

ARCHITECTURES = CHIPS
# Shared memory a block may use. Triton objects to too much of it only at launch.
SHARED_LIMIT = {"sm_90": 232_448, "sm_80": 166_912, "gfx942": 65_536}
REGISTERS = 65_536
PROCESSES = 2
# Where a worker finds its modules; tests point it at kernels that are wrong on purpose.
MODULES_OF = __package__


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled variant takes and how it computes.

    Attributes:
        registers: per thread; spills: bytes of local memory per thread; shared: bytes per block.
        mma: its matrix instruction, or "".
        load_bits: of its widest load from global memory.
        error: why it did not compile, or "".
    """

    name: str
    arch: str
    warps: int
    registers: int = 0
    spills: int = 0
    shared: int = 0
    mma: str = ""
    load_bits: int = 0
    error: str = ""


def kernel_modules() -> list[str]:
    """The modules of this folder that have variants."""
    folder = Path(__file__).parent
    return [
        file.stem
        for file in sorted(folder.glob("*.py"))
        if "\ndef variants(" in file.read_text(encoding="utf-8")
    ]


def compile_all(modules: Iterable[str] | None = None) -> list[tuple[Resources, list[str]]]:
    """Every variant of `modules` (default: all), with what is wrong with it: on every architecture with the defaults, and
    with each tuned file on its chip, by a name that ends with the file's."""
    names = kernel_modules() if modules is None else list(modules)
    jobs: list[tuple[str, str, Mapping[str, Config], str]] = [
        (name, arch, {}, "") for name in names for arch in ARCHITECTURES
    ]
    for file in tuned_files():
        tuned = read_tuned(file)
        for name in names:
            cases = {case: config for (module, case), config in tuned.choices.items() if module == name}
            if cases:
                jobs.append((name, tuned.chip, cases, f" ({file.stem})"))
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(lambda job: compile_rounds(job[0], job[1], [job[2]])[0], jobs))
    return [
        (replace(resources, name=resources.name + job[3]), wrong)
        for job, results in zip(jobs, found, strict=True)
        for resources, wrong in results
    ]


def compile_rounds(
    module: str, arch: str, rounds: Sequence[Mapping[str, Config]]
) -> list[list[tuple[Resources, list[str]]]]:
    """The variants of one module and architecture, once for each of `rounds`, with what is wrong with them.

    A round says how cases are launched, and only their variants are compiled; an empty one means all, with the defaults. A
    process goes through the rounds; if it crashes, that is the fault of the variant it began last, and another one goes on.
    """
    found: list[list[tuple[Resources, list[str]]]] = []
    while len(found) < len(rounds):
        found += _in_process(module, arch, rounds[len(found) :])
    return found


def complaints(variant: Variant, found: Resources) -> list[str]:
    """What `found` lacks or has too much of. AMD's compiler is asked for less: nobody tunes for it yet."""
    if found.error:
        return [found.error]
    wrong = []
    if found.spills:
        wrong.append(f"{found.spills} bytes of registers are spilled")
    if found.shared > SHARED_LIMIT[found.arch]:
        wrong.append(f"{found.shared} bytes of shared memory; {found.arch} has {SHARED_LIMIT[found.arch]}")
    if found.arch.startswith("gfx"):
        return wrong
    if found.registers * found.warps * 32 > REGISTERS:
        wrong.append(f"{found.registers} registers of {found.warps} warps; a block has {REGISTERS}")
    if variant.mma is not None and not re.search(_wanted_mma(variant, found.arch), found.mma):
        wrong.append(f"its matrix instruction is {found.mma or 'missing'}, not one of {variant.mma}")
    if variant.wide_loads and found.load_bits < 128:
        wrong.append(f"its widest load is of {found.load_bits} bits")
    return wrong


def _wanted_mma(variant: Variant, arch: str) -> str:
    """Hopper's wgmma takes 64 rows and four warps; smaller tiles are left to mma.sync."""
    wide = arch == "sm_90" and variant.num_warps >= 4 and variant.constexprs.get(variant.mma_rows, 0) >= 64
    return (r"wgmma\S*" if wide else r"mma\.sync\S*") + rf"\.{variant.mma}\.{variant.mma}"


def _in_process(
    module: str, arch: str, rounds: Sequence[Mapping[str, Config]] = ({},)
) -> list[list[tuple[Resources, list[str]]]]:
    """As `compile_rounds`, in one fresh process: up to the round in which it crashed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-P",  # in a checkout, its own `penstock` folder would hide the package
        "-m",
        f"{__package__}.ahead_of_time",
        "--worker",
        f"{MODULES_OF}.{module}",
        arch,
    ]
    asked = json.dumps([{case: as_json(config) for case, config in cases.items()} for cases in rounds])
    done = subprocess.run(command, env=environment, input=asked, capture_output=True, text=True, check=False)
    begun = ""
    results: list[list[tuple[Resources, list[str]]]] = []
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if "round" in said:
            results.append([])
        elif "begins" in said:
            begun = said["begins"]
        else:
            results[-1].append((Resources(**said["resources"]), said["complaints"]))
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        crash = f"the compiler ended with {done.returncode}: {reason}"
        results = results or [[]]
        results[-1].append((Resources(begun or module, arch, 0, error=crash), [crash]))
    return results


def _work(module: str, arch: str, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    operation = module.rpartition(".")[2]
    for number, said in enumerate(rounds):
        print(json.dumps({"round": number}), flush=True)
        cases = {case: Config(**config) for case, config in said.items()}
        use({(operation, case): config for case, config in cases.items()}, None)
        for variant in import_module(module).variants(arch):
            if cases and variant.case not in cases:
                continue
            print(json.dumps({"begins": variant.name}), flush=True)
            found = compile_one(variant, arch)
            wrong = complaints(variant, found)
            print(json.dumps({"resources": asdict(found), "complaints": wrong}), flush=True)


def compile_one(variant: Variant, arch: str) -> Resources:
    """Raises nothing for a kernel that does not compile: its `error` says why."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in variant.signature.items()
        if name not in variant.unaligned and (kind.startswith("*") or kind in ("i32", "i64"))
    }
    constexprs = dict(variant.constexprs)
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": variant.fp_fusion,
    }
    try:
        source = ASTSource(
            variant.kernel, signature, {(names.index(k),): v for k, v in constexprs.items()}, aligned
        )
        compiled = triton.compile(source, target=target, options=options)
    except Exception as error:  # the compiler raises what it likes
        reason = f"{error} {error.__cause__ or ''}"
        return Resources(variant.name, arch, variant.num_warps, error=" ".join(reason.split()))
    shared = int(compiled.metadata.shared)
    if arch.startswith("gfx"):
        return _read_amd(variant, arch, shared, compiled.asm["amdgcn"])
    return _read_nvidia(variant, arch, shared, compiled.asm["ptx"], compiled.asm["cubin"])


def _read_nvidia(variant: Variant, arch: str, shared: int, ptx: str, cubin: bytes) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    registers = max(int(number) for number in re.findall(r"REG:(\d+)", usage))
    stack = max(int(number) for number in re.findall(r"STACK:(\d+)", usage))
    spills = stack if re.search(r"\b(LDL|STL)\b", sass) else 0
    found = re.search(r"wgmma\.mma_async\S*|mma\.sync\S*", ptx)
    # The instruction must have survived into machine code: [IH]GMMA for wgmma, [IH]MMA for mma.sync.
    kept = found is not None and re.search(r"\b[IHQ]GMMA|\b[IHQ]MMA|\bBGMMA", sass) is not None
    return Resources(
        variant.name,
        arch,
        variant.num_warps,
        registers,
        spills,
        shared,
        _shortened(found.group()) if found is not None and kept else "",
        _widest_load(sass),
    )


def _read_amd(variant: Variant, arch: str, shared: int, assembly: str) -> Resources:
    def number(pattern: str) -> int:
        found = re.search(pattern, assembly)
        return int(found.group(1)) if found else 0

    mma = re.search(r"v_mfma_\S+", assembly)
    loads = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword ": 32}
    widest = max(
        (bits for word, bits in loads.items() if re.search(rf"(global|buffer)_load_{word}", assembly)),
        default=0,
    )
    return Resources(
        variant.name,
        arch,
        variant.num_warps,
        number(r"\.vgpr_count:\s+(\d+)"),
        number(r"\.private_segment_fixed_size:\s+(\d+)"),
        shared,
        mma.group() if mma else "",
        widest,
    )


def _shortened(instruction: str) -> str:
    """ "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" without the words that all of them have."""
    return (
        instruction.replace(".mma_async", "")
        .replace(".sync.aligned", "")
        .replace("mma.m", "mma.sync.m", 1)
        .replace("wgmma.sync", "wgmma")
        .replace(".row.col", "")
        .replace(".satfinite", "")
    )


def _widest_load(sass: str) -> int:
    """Bits of the widest load or copy from global memory; tensor copies (UTMALDG) move whole boxes."""
    if "UTMALDG" in sass:
        return 128
    widths = [0]
    for operation in re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]*", sass):
        width = re.search(r"\.(128|64|U16|U8|S8|S16)\b", operation)
        widths.append({"128": 128, "64": 64, None: 32}.get(width.group(1) if width else None, 8))
    return max(widths)


def _tool(name: str, *arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def table(results: Iterable[tuple[Resources, list[str]]]) -> Iterator[str]:
    """RESOURCES.md, line by line."""
    import triton

    yield "# What every kernel takes"
    yield ""
    limits = ", ".join(f"{arch} {limit:,}" for arch, limit in SHARED_LIMIT.items())
    yield "Written by `python -m penstock.kernels.gpu.ahead_of_time --table > kernels/RESOURCES.md`; a test compares it"
    yield f"with the code. Compiled ahead of time by Triton {triton.__version__}, without a GPU. Registers are per thread,"
    yield f"shared memory in bytes per block (limits: {limits}), loads in bits. gfx942 is reported, not tuned."
    yield ""
    yield "| kernel | chip | warps | registers | spills | shared | matrix instruction | widest load | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for found, wrong in results:
        yield (
            f"| {found.name} | {found.arch} | {found.warps} | {found.registers} | {found.spills} | {found.shared:,} "
            f"| {found.mma} | {found.load_bits or ''} | {'; '.join(wrong) or 'ok'} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--worker", nargs=2, metavar=("MODULE", "ARCH"), help=argparse.SUPPRESS)
    parser.add_argument("modules", nargs="*", help="default: all")
    arguments = parser.parse_args()
    if arguments.worker:
        module, arch = arguments.worker
        _work(module, arch, json.load(sys.stdin))
        return 0
    results = compile_all(arguments.modules or None)
    if arguments.table:
        print("\n".join(table(results)))
    wrong = [(found, what) for found, what in results if what and not found.arch.startswith("gfx")]
    for found, what in wrong:
        print(f"{found.name} on {found.arch}: {'; '.join(what)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
