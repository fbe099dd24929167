"""How kernels might be launched faster than by default, and what of that can be had.

    python bench/tuning_candidates.py             compile the list below for sm_90, write what survives
    python bench/tuning_candidates.py --again     the same for what is written already: with another version of Triton

No GPU is needed. `tuning_candidates.json` holds the survivors in the order in which `tune_kernels.py` goes through them, the
cases that an 8B Llama spends its time in first. Spilled registers, too much shared memory or a missing matrix
instruction are reasons to leave one out; the default of a case is no candidate, being measured anyway.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".types"))

from penstock.kernels.gpu.ahead_of_time import compile_rounds  # noqa: E402
from penstock.kernels.gpu.config import Config, as_json  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
ARCH = "sm_90"
Candidates = dict[tuple[str, str], list[Config]]


def written() -> Candidates:
    """What the file holds, by operation and case."""
    said = json.loads(FILE.read_text(encoding="utf-8"))
    return {tuple(key.split()): [Config(**config) for config in configs] for key, configs in said.items()}


def considered() -> Candidates:
    """All that seemed worth compiling."""
    whole = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")
    decode = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    found: Candidates = {}

    def add(operation: str, case: str, tiles: Iterable[str], rows: str) -> None:
        """`rows`: tiles, warps and stages, divided by commas."""
        numbers = [[int(number) for number in row.split()] for row in rows.split(",")]
        found[operation, case] = [
            Config(dict(zip(tiles, own[:-2], strict=True)), own[-2], own[-1]) for own in numbers
        ]

    few = "64 128 4 5, 64 256 4 3, 32 256 4 4, 32 256 4 5, 32 512 4 3, 128 128 4 4, 128 256 8 3, 64 512 8 3"
    more = "64 256 4 3, 64 256 8 3, 64 128 4 5, 64 128 4 3, 32 256 4 4, 128 128 8 4, 128 128 4 4, 128 256 8 3"
    for rows, sides in ((16, few), (64, more), (32, few)):
        add(
            "int8_matmul", f"decode_{rows}", decode, ", ".join(f"{rows} {side}" for side in sides.split(", "))
        )
    add(
        "int8_matmul",
        "prefill",
        whole,
        "128 256 64 8 8 4, 128 256 128 8 8 3, 256 128 64 8 8 4, 256 128 128 8 8 3, 128 128 128 8 8 3, "
        "128 128 128 16 8 4, 128 128 64 8 8 5, 128 128 64 8 4 5, 64 256 128 8 8 3, 64 128 128 8 4 4",
    )
    add(
        "grouped_int8_matmul",
        "decode",
        whole,
        "16 64 128 8 4 5, 16 64 256 8 4 3, 16 128 128 8 4 4, 16 32 256 8 4 4, 16 64 256 1 4 4, 32 64 128 8 4 4",
    )
    add(
        "grouped_int8_matmul",
        "prefill",
        whole,
        "128 128 128 8 8 3, 128 128 64 8 8 5, 128 128 128 16 8 4, 64 128 128 8 4 4, 64 256 128 8 8 3",
    )
    keys = "32 4 3, 32 4 4, 64 4 2, 64 4 4, 64 8 3, 128 4 2, 128 8 2, 128 8 3"
    prompt = "128 64 8 2, 128 64 8 3, 128 128 8 2, 128 128 8 3, 64 64 4 2, 64 64 4 3, 64 128 4 2, 128 64 4 2"
    wide = "128 32 8 2, 128 32 8 3, 64 32 4 2, 64 32 8 2, 64 64 8 2, 64 64 4 2, 128 64 8 2"
    listed = "32 4 3, 64 4 2, 64 4 3, 64 8 3, 128 4 2, 128 8 2"
    scores = "16 64 4 2, 16 128 4 2, 16 32 4 3, 16 64 8 2, 32 64 8 2"
    masses = "128 16 8 2, 128 64 8 2, 128 32 8 3, 128 32 4 2, 64 32 4 2, 64 32 4 3"
    large = "128 32 8 2, 64 32 8 2, 64 32 8 3, 64 16 8 2, 64 64 8 2"
    cut = "128 64 8 2, 128 64 8 3, 128 32 8 2, 64 64 4 2, 64 64 4 3, 64 32 4 2"
    warps = "1 1, 2 1, 4 1, 8 1, 16 1"

    def heads(size: int) -> None:
        for kind in ("_int8", ""):
            add("paged_attention", f"decode_{size}{kind}", ("BLOCK_N",), keys)
            tiles = ("BLOCK_M", "BLOCK_N")
            add("paged_attention", f"prefill_{size}{kind}", tiles, wide if size == 256 else prompt)
            add("store_kv", f"store_{size}{kind}", (), "1 1, 2 1, 8 1")

    def sparse(size: int) -> None:
        for kind in ("_int8", ""):
            add("sparse_attention", f"score_keys_{size}{kind}", ("BLOCK_G", "GRANULES"), scores)
            add("sparse_attention", f"attend_{size}{kind}", ("BLOCK_N",), listed)
        for formula in ("min_max", "mean_std"):
            add("sparse_attention", f"score_{formula}_{size}", ("BLOCK_G", "GRANULES"), scores)

    def prompts(size: int) -> None:
        for kind in ("_int8", ""):
            add("sparse_prompt", f"score_{size}{kind}", ("BLOCK_M", "BLOCKS"), masses)
            tiles = ("BLOCK_M", "BLOCK_N")
            add("sparse_prompt", f"attend_{size}{kind}", tiles, large if size == 256 else cut)

    heads(128)
    for operation, case in (
        ("rms_norm", "block_4096"),
        ("silu_mul", "pieces"),
        ("quantize_activation", "block_4096"),
        ("quantize_activation", "pieces"),
    ):
        add(operation, case, (), warps)
    add("rotary", "heads", (), "2 1, 4 1")
    add("sample", "draw", ("BLOCK",), "2048 8 1, 4096 8 1, 8192 16 1, 2048 16 1")
    for bits in (8, 4):
        for tokens in (16, 64, 32):
            sides = ["64 4 3", "64 4 5", "64 8 4", "128 8 4", "128 4 4", "128 8 3"]
            rows = ", ".join(" ".join((side.split()[0], str(tokens), *side.split()[1:])) for side in sides)
            add("weight_only_matmul", f"decode_{bits}_{tokens}", ("BLOCK_N", "BLOCK_M"), rows)
        add(
            "weight_only_matmul",
            f"prefill_{bits}",
            ("BLOCK_N", "BLOCK_M"),
            "128 128 8 3, 128 128 8 2, 128 128 8 4, 128 64 8 3, 128 64 8 4, 128 64 4 3, 64 128 4 4, "
            "64 256 8 3, 256 64 8 3",
        )
    sparse(128)
    add(
        "sparse_attention",
        "select",
        ("BLOCK_G",),
        "256 4 1, 512 4 1, 512 8 1, 1024 4 1, 1024 16 1, 2048 16 1",
    )
    prompts(128)
    add("sparse_prompt", "select", ("SHARES",), "2048 8 1, 4096 8 1, 4096 16 1, 8192 8 1, 16384 16 1")
    add("paged_attention", "combine", (), "1 1, 2 1, 8 1")
    for size in (64, 256):
        heads(size)
        sparse(size)
        prompts(size)
    for operation in ("rms_norm", "silu_mul", "quantize_activation"):
        for case in ("block_1024", "block_2048", "block_4096", "block_8192", "pieces"):
            if (operation, case) not in found:
                add(operation, case, (), warps)
    return found


def survivors(candidates: Candidates) -> Candidates:
    """Those that compile on ARCH as they should, and are not the default."""
    from importlib import import_module

    defaults = {}
    for operation in {operation for operation, _ in candidates}:
        for variant in import_module(f"penstock.kernels.gpu.{operation}").variants(ARCH):
            defaults[operation, variant.case] = variant

    def kept(operation: str, case: str) -> list[Config]:
        default = defaults[operation, case]
        tried = [
            config
            for config in candidates[operation, case]
            if (config.num_warps, config.num_stages) != (default.num_warps, default.num_stages)
            or any(default.constexprs[tile] != value for tile, value in config.tiles.items())
        ]
        rounds = compile_rounds(operation, ARCH, [{case: config} for config in tried])
        good = []
        for config, results in zip(tried, rounds, strict=True):
            wrong = sorted({complaint for _, complaints in results for complaint in complaints})
            if wrong:
                print(f"{operation} {case} {as_json(config)}: {'; '.join(wrong)}", flush=True)
            else:
                good.append(config)
        return good

    with ThreadPoolExecutor(2) as pool:
        lists = pool.map(lambda key: kept(*key), candidates)
        return dict(zip(candidates, lists, strict=True))


def write(candidates: Candidates) -> None:
    """A line for each."""
    cases = [
        f' "{operation} {case}": [\n'
        + ",\n".join(f"  {json.dumps(as_json(config))}" for config in configs)
        + "\n ]"
        for (operation, case), configs in candidates.items()
    ]
    FILE.write_text("{\n" + ",\n".join(cases) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true")
    before = written() if parser.parse_args().again else considered()
    after = survivors(before)
    write(after)
    print(f"{sum(map(len, after.values()))} of {sum(map(len, before.values()))} for {len(after)} cases")


if __name__ == "__main__":
    main()
