"""Measures how kernels are best launched on this machine's GPU, and writes `kernels/tuned/<GPU>.json`.

    python bench/tune_kernels.py --seconds 420              on a GPU
    python bench/tune_kernels.py --only rms_norm            one operation, or one case: "int8_matmul decode_16"
    python bench/tune_kernels.py --processes 14 --unchecked   compiles beforehand in so many processes, and leaves the
                                                            ahead-of-time check of what wins to `make test`
    python bench/tune_kernels.py --tiny --out FOLDER        anywhere: the same code in Triton's interpreter, tiny, untimed

Goes through `tuning_candidates.json`, case by case. A candidate must give what the default gives: the same bits where the
kernel promises them, else within the suite's tolerance; one that does not compile or fit is left out. Times are medians
over inputs that rotate through more than the L2 cache, by CUDA graphs, and a geometric mean over the shapes. The fastest
wins if it takes at least 2 % less than the default and the ahead-of-time check has no complaint. (Tiny: the first that
agrees.) The file is written anew after every case; started again, on the same commit and versions, the rest is measured.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import gpu_suite
from gpu_suite import L2_BYTES, ROOT, TOLERANCE, Case, machine, relative, seconds

# A candidate must beat the default by more than measurements scatter.
MARGIN = 0.98
# What promises the same bits, however it is launched.
EXACT = {
    "int8_matmul",
    "grouped_int8_matmul",
    "weight_only_matmul",
    "quantize_activation",
    "silu_mul",
    "rotary",
    "store_kv",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--out", type=Path, help="folder of the file; default: kernels/tuned")
    parser.add_argument("--only", nargs="+", default=[""], metavar="OPERATION")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--unchecked", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny and args.out is None:
        parser.error(
            "--tiny measures nothing, so it doesn't write to kernels/tuned; name another folder by --out."
        )
    sys.path.insert(0, str(ROOT / ".types"))
    if args.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    deadline = time.monotonic() + args.seconds
    tuner = Tuner(args.tiny, args.out, deadline, checked=not args.unchecked)
    if args.processes:
        compile_beforehand(tuner.asked_for(args.only), args, deadline)
    return tuner.run(args.only)


def compile_beforehand(cases: dict, args: argparse.Namespace, deadline: float) -> None:
    """Has every candidate launched once, which fills Triton's cache on disk."""
    started = time.monotonic()
    tasks = [(*key, candidate) for key, candidates in cases.items() for candidate in [None, *candidates]]
    settings = (args.tiny, args.out, deadline)
    with ProcessPoolExecutor(
        args.processes, get_context("spawn"), initializer=_become_compiler, initargs=settings
    ) as pool:
        for _ in pool.map(_compile, tasks):
            pass
    print(f"{len(tasks)} launches compiled in {time.monotonic() - started:.0f} s", flush=True)


_compiler: list["Tuner"] = []


def _become_compiler(tiny: bool, out: Path | None, deadline: float) -> None:
    sys.path.insert(0, str(ROOT / ".types"))
    _compiler[:] = [Tuner(tiny, out, deadline)]


def _compile(task: tuple[str, str, object]) -> None:
    """`task`: operation, case and candidate, None for the default."""
    import torch

    from penstock.kernels.gpu import config

    (tuner,), (operation, case, candidate) = _compiler, task
    if time.monotonic() > tuner.deadline:
        return
    config.use({} if candidate is None else {(operation, case): candidate}, tuner.device)
    try:
        for workload in tuner.workloads(operation, case):
            workload.run(0)
        torch.cuda.synchronize()
    except Exception:  # it will fail again, and say so, when it is to be timed
        pass
    torch.cuda.empty_cache()


class Refused(Exception):
    """A candidate that gives something else than the default does."""


class Tuner:
    """One run; `deadline` on the monotonic clock, after which nothing new is tried."""

    def __init__(self, tiny: bool, out: Path | None, deadline: float, *, checked: bool = True) -> None:
        import torch

        from penstock.kernels.gpu import config

        if not tiny and not torch.cuda.is_available():
            raise SystemExit(
                "There is no CUDA device to measure; --tiny runs the same code in the interpreter."
            )
        self.tiny, self.deadline, self.checked = tiny, deadline, checked
        self.device = torch.device("cpu") if tiny else torch.device("cuda", torch.cuda.current_device())
        gpu = "interpreter" if tiny else torch.cuda.get_device_name(self.device)
        self.path = (out or config.TUNED_FOLDER) / config.path_of(gpu).name
        found = machine()
        self.report = {
            "gpu": gpu,
            "chip": config.arch_of(self.device),
            "measured": {"date": time.strftime("%Y-%m-%d")}
            | {key: found.get(key, "none") for key in ("commit", "driver", "torch", "triton")},
            "configurations": {},
        }

    def asked_for(self, only: list[str]) -> dict[tuple[str, str], list]:
        """The candidates of the cases that `only` names, by operation and case."""
        from tuning_candidates import written

        listed = written()
        for name in only:
            if not any(" ".join(key).startswith(name) for key in listed):
                operations = ", ".join(dict.fromkeys(operation for operation, _ in listed))
                raise SystemExit(
                    f"--only {name!r} is no operation, and no case of one; there are {operations}."
                )
        return {
            key: candidates
            for key, candidates in listed.items()
            if any(" ".join(key).startswith(name) for name in only)
        }

    def run(self, only: list[str]) -> int:
        self.resume()
        failed = 0
        for (operation, case), candidates in self.asked_for(only).items():
            if case in self.report["configurations"].get(operation, {}):
                continue
            if time.monotonic() > self.deadline:
                print(f"{operation} {case}: no time left; start again to go on")
                continue
            try:
                entry = self.tune(operation, case, candidates)
            except Refused as error:
                print(f"{operation} {case}: {error}")
                failed = 1
                continue
            if entry is not None:
                self.report["configurations"].setdefault(operation, {})[case] = entry
                self.keep()
        return failed

    def resume(self) -> None:
        """Goes on with the file of an earlier run on the same commit and versions; another's would be mixed with ours."""
        if self.path.is_file():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            own, earlier = (
                {**report["measured"], "date": ""} for report in (self.report, {"measured": {}, **before})
            )
            if own == earlier:
                self.report = before

    def keep(self) -> None:
        """Whole or not at all, and only what can be read again."""
        from penstock.kernels.gpu.config import read_tuned

        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        read_tuned(unfinished)
        os.replace(unfinished, self.path)

    def tune(self, operation: str, case: str, candidates: list) -> dict[str, object] | None:
        """What to write of a case; None when time ran out. Raises Refused when the default itself is wrong."""
        from penstock.kernels.gpu import config

        asked = Asked()
        config.use(asked, self.device)
        workloads = list(self.workloads(operation, case))
        for workload in workloads:
            error = workload.error()
            if not error <= TOLERANCE:
                raise Refused(f"{workload.name}: the default errs by {error:.1e}")
        expected = [outputs(workload) for workload in workloads]
        if (operation, case) not in asked.defaults:
            raise Refused(f"no launch of {[workload.name for workload in workloads]} asks for this case")
        default = asked.defaults[operation, case]
        default_took = None if self.tiny else self.time(workloads)
        took = []
        for candidate in candidates:
            if time.monotonic() > self.deadline:
                return None
            asked[operation, case] = candidate
            try:
                for workload, wanted in zip(workloads, expected, strict=True):
                    compare(outputs(workload), wanted, operation in EXACT)
                took.append((0.0 if self.tiny else self.time(workloads), candidate))
                if self.tiny:
                    break
            except Exception as error:  # what does not compile or fit raises what it likes
                print(
                    f"{operation} {case} {config.as_json(candidate)}: {type(error).__name__}: {error}"[:200]
                )
        if default_took is None:
            entry = config.as_json(took[0][1] if took else default)
        else:
            best, chosen = winner(
                default_took, default, took, lambda own: self.compiles(operation, case, own)
            )
            entry = {
                **config.as_json(chosen),
                "microseconds": round(best * 1e6, 2),
                "default_microseconds": round(default_took * 1e6, 2),
            }
        print(f"{operation} {case}: {entry}", flush=True)
        return entry

    def time(self, workloads: list[Case]) -> float:
        """Seconds, a geometric mean over the workloads."""
        logs = [math.log(seconds(workload.run, workload.copies)) for workload in workloads]
        return math.exp(sum(logs) / len(logs))

    def compiles(self, operation: str, case: str, candidate: object) -> bool:
        """Whether the ahead-of-time check, which everybody's tests run, would let it pass."""
        if not self.checked:
            return True
        from penstock.kernels.gpu.ahead_of_time import compile_rounds

        (found,) = compile_rounds(operation, self.report["chip"], [{case: candidate}])
        for resources, wrong in found:
            if wrong:
                print(f"{resources.name}: {'; '.join(wrong)}")
        return not any(wrong for _, wrong in found)

    def workloads(self, operation: str, case: str) -> Iterator[Case]:
        """What launches `case`: shapes of an 8B Llama, of mixtures of experts, and those that the targets are set for."""
        import torch

        tiny, where = self.tiny, (self.device, torch.float32 if self.tiny else torch.bfloat16)
        kind, _, rest = case.partition("_")
        match operation, kind:
            case (("int8_matmul" | "weight_only_matmul"), _):
                bits = case.split("_")[1] if operation == "weight_only_matmul" else None
                rows = int(case.split("_")[-1]) if kind == "decode" else None
                for m, n, k in self.products(rows):
                    if bits is None:
                        yield gpu_suite.matmul_case(m, n, k, *where)
                    else:
                        yield gpu_suite.weight_only_case(int(bits), m, n, k, *where)
            case "grouped_int8_matmul", _:
                for sizes in self.mixtures(kind):
                    yield gpu_suite.grouped_matmul_case(*sizes, *where)
            case "paged_attention", "combine":
                yield gpu_suite.attention_case(1, 1, 600 if tiny else 131072, True, *where, tiny)
            case "paged_attention", _:
                dim, int8 = int(rest.removesuffix("_int8")), rest.endswith("_int8")
                if kind == "decode":
                    for batch, context in [(2, 70)] if tiny else [(16, 8192), (1, 131072), (64, 4096)]:
                        yield gpu_suite.attention_case(batch, 1, context, int8, *where, tiny, dim)
                else:
                    context = 70 if tiny else 8192
                    yield gpu_suite.attention_case(1, context, context, int8, *where, tiny, dim)
            case "sparse_attention", _:
                size = next((part for part in case.split("_") if part.isdigit()), "128")
                formula = next((name for name in ("min_max", "mean_std") if name in case), "keys")
                int8 = case.endswith("_int8") or formula != "keys"
                for batch, context in [(2, 300)] if tiny else [(16, 32768), (1, 131072)]:
                    yield gpu_suite.sparse_case(batch, context, formula, *where, tiny, int(size), int8)
            case "sparse_prompt", _:
                size = int(next((part for part in case.split("_") if part.isdigit()), "128"))
                for context in (400,) if tiny else (32768, 131072):
                    yield gpu_suite.prompt_case(1, context, case.endswith("_int8"), *where, tiny, size)
            case "store_kv", _:
                yield store_case(int(rest.removesuffix("_int8")), rest.endswith("_int8"), *where, tiny)
            case "rotary", _:
                yield gpu_suite.rotary_case(3 if tiny else 8192, *where)
            case "sample", _:
                yield gpu_suite.sample_case(*((3, 100) if tiny else (64, 128256)), self.device)
            case (("rms_norm" | "silu_mul" | "quantize_activation"), _):
                build = {
                    "rms_norm": gpu_suite.rms_norm_case,
                    "silu_mul": gpu_suite.silu_mul_case,
                    "quantize_activation": gpu_suite.quantize_case,
                }[operation]
                width = 14336 if kind == "pieces" else int(rest)
                for rows in (2,) if tiny else (64, 8192):
                    yield build(rows, width, *where)
            case _:
                raise Refused("there is no workload for this operation")

    def products(self, rows: int | None) -> list[tuple[int, int, int]]:
        """(M, N, K); `rows` of a decode, or None."""
        if self.tiny:
            return [(rows or 65, 72, 256)]
        if rows is None:
            return [(256, 6144, 4096), (2048, 8192, 21760), (8192, 4096, 4096)]
        return [(rows, 6144, 4096), (rows, 28672, 4096), (rows, 4096, 14336)]

    def mixtures(self, kind: str) -> list[tuple[int, int, int, int, int]]:
        """(tokens, experts, of each token, N, K) of Mixtral 8x7B and Qwen3 30B-A3B."""
        if self.tiny:
            return [(3, 4, 2, 40, 64) if kind == "decode" else (80, 2, 2, 40, 64)]
        if kind == "decode":
            return [(1, 8, 2, 28672, 4096), (16, 8, 2, 28672, 4096), (16, 128, 8, 1536, 2048)]
        return [(2048, 8, 2, 28672, 4096), (4096, 128, 8, 1536, 2048)]


class Asked(dict):
    """Choices that remember which cases launches asked for, and their defaults."""

    def __init__(self) -> None:
        self.defaults: dict[tuple[str, str], object] = {}

    def get(self, key: tuple[str, str], default: object = None) -> object:
        self.defaults[key] = default
        return super().get(key, default)


def store_case(dim: int, int8: bool, device: object, dtype: object, tiny: bool) -> Case:
    """A prompt's keys and values; `run` gives the pages. The keys are compared with what was given."""
    import torch

    from penstock.kernels.gpu.paged_batch import PagedBatch
    from penstock.kernels.gpu.store_kv import store_kv
    from penstock.kernels.span import Span

    tokens, heads = (70, 2) if tiny else (8192, 8)
    num_pages = math.ceil(tokens / 64)
    copies = 1 if tiny else max(1, math.ceil(2 * L2_BYTES / (4 * tokens * heads * dim)))
    rows = [torch.randn(2, tokens, heads, dim, device=device).to(dtype) for _ in range(copies)]
    shape = (num_pages + 1, heads, 2, 64, dim)
    pages = torch.zeros(shape, dtype=torch.int8 if int8 else dtype, device=device)
    scales = torch.zeros(shape[:-1], device=device) if int8 else None
    summaries = torch.zeros(num_pages + 1, heads, 4, 2, dim, dtype=dtype, device=device)
    batch = PagedBatch.build([Span(list(range(1, num_pages + 1)), 0, tokens)], pages.device)

    def run(index: int) -> tuple[torch.Tensor | None, ...]:
        store_kv(*rows[index], pages, scales, summaries, batch)
        return pages, scales, summaries

    def error() -> float:
        run(0)
        stored = pages.double() if scales is None else pages.double() * scales.double()[..., None]
        keys = stored[1:, :, 0].transpose(1, 2).flatten(0, 1)[:tokens]
        return relative(keys.flatten(0, 1), rows[0][0].double().flatten(0, 1))

    name = f"store_kv {'int8' if int8 else 'float'} {tokens}x{dim}"
    return Case(name, run, error, {}, 4 * tokens * heads * dim, 0, copies)


def winner(
    default_took: float, default: object, took: list, passes: Callable[[object], bool]
) -> tuple[float, object]:
    """Seconds and configuration of the fastest of `took` that `passes` and beats the default by MARGIN, or the default's."""
    faster = sorted((pair for pair in took if pair[0] < default_took * MARGIN), key=lambda pair: pair[0])
    return next((pair for pair in faster if passes(pair[1])), (default_took, default))


def outputs(workload: Case) -> list:
    """Copies of the tensors that a run gives: the next one may write to the same."""
    import torch

    given = workload.run(0)
    given = given if isinstance(given, tuple) else (given,)
    return [tensor.clone() for tensor in given if isinstance(tensor, torch.Tensor)]


def compare(found: list, wanted: list, exact: bool) -> None:
    """Raises Refused where `found` is not what it must be."""
    import torch

    for own, default in zip(found, wanted, strict=True):
        if exact:
            if not torch.equal(own, default):
                raise Refused("other bits than the default's")
        elif own.is_floating_point():
            apart = relative(own, default.double())
            if not apart <= TOLERANCE:
                raise Refused(f"{apart:.1e} from the default")
        elif not (own != default).double().mean() <= TOLERANCE:
            raise Refused("other integers than the default's")


if __name__ == "__main__":
    sys.exit(main())
