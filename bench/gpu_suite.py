"""Everything there is to know of the kernels on a GPU, in one command, on a fresh machine without network.

    python bench/gpu_suite.py --out results.json            on a GPU: tests, kernels, engine; under nine minutes
    python bench/gpu_suite.py --layers 8 --out results.json   the engine on a model a quarter as deep
    python bench/gpu_suite.py --tiny --out results.json     anywhere: the same code in Triton's interpreter, tiny, untimed

Needs torch, Triton, transformers and what the engine imports; Penstock itself is taken from this checkout. Results are
written after every step, so that a run cut short leaves what it had. A kernel is compared with float64 before it is timed,
and is not timed when it is wrong. Inputs are random and rotate through more memory than the L2 cache holds.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
L2_BYTES = 60 << 20
# An output may be off by this much of its row's largest value: bf16 keeps 8 bits.
TOLERANCE = 2e-2


@dataclass
class Row:
    """One measurement: `seconds` of ours, of each baseline, and the work that bounds it from below."""

    name: str
    error: float | None
    seconds: float | None = None
    baselines: dict[str, float] | None = None
    bytes: int = 0
    operations: int = 0
    of_ceiling: float | None = None
    failure: str | None = None


@dataclass
class Case:
    """`run(i)` on the i-th of `copies` input sets; `error()` against float64; baselines likewise by index."""

    name: str
    run: Callable[[int], object]
    error: Callable[[], float]
    baselines: dict[str, Callable[[int], object]]
    bytes: int
    operations: int
    copies: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--sections", default="tests,kernels,engine")
    parser.add_argument("--test-seconds", type=int, default=240)
    parser.add_argument("--layers", type=int, default=32, help="of the engine's model")
    parser.add_argument(
        "--ways", nargs="+", default=[], help="of serving it; default: all of bench/gpu_engine.py"
    )
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / ".types"))
    if args.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    report: dict[str, object] = {"machine": machine(), "interpreted": args.tiny}

    def keep(name: str, value: object) -> None:
        report[name] = value
        args.out.write_text(json.dumps(report, indent=1))

    keep("started", time.strftime("%Y-%m-%d %H:%M:%S"))
    failed = False
    if "tests" in args.sections:
        keep("tests", result := run_tests(args.tiny, args.test_seconds))
        failed |= result["exit"] != 0
    if "kernels" in args.sections:
        if not args.tiny:
            keep("ceilings", ceilings())
        rows: list[dict[str, object]] = []
        for case in cases(args.tiny):
            rows.append(asdict(measure(case, args.tiny, report.get("ceilings"))))
            keep("kernels", rows)
        failed |= any(row["failure"] or not row["error"] <= TOLERANCE for row in rows)
    if "engine" in args.sections:
        from gpu_engine import engine

        for name, figures in engine(args.tiny, args.layers, args.ways):
            keep(f"engine {name}", figures)
            failed |= "failure" in figures
    show(report)
    return int(failed)


def machine() -> dict[str, object]:
    import torch
    import triton

    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    found: dict[str, object] = {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if torch.cuda.is_available():
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found |= {"gpu": torch.cuda.get_device_name(), "driver": driver.stdout.strip()}
    return found


def run_tests(tiny: bool, limit: int) -> dict[str, object]:
    """The kernels' tests on this device; of the tiny run one file, since `make test` runs them all."""
    files = ("test_gpu_kernels.py", "test_cuda.py", "test_decode_graphs.py", "test_prompt_graphs.py")
    where = ["tests/kernels/gpu", *(f"tests/scheduler/{name}" for name in files)]
    if tiny:
        where = ["tests/kernels/gpu/test_quantize_activation.py"]
    skip = ["--ignore=tests/kernels/gpu/test_ahead_of_time.py", "-p", "no:cacheprovider"]
    beside = ["-n", "8"] if not tiny and find_spec("xdist") else []
    paths = [str(ROOT / ".types"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            # -P: the checkout's own `penstock` folder would hide the package.
            [sys.executable, "-P", "-m", "pytest", *beside, *skip, *where],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"exit": -1, "tail": f"not done after {limit} s"}
    return {"exit": done.returncode, "tail": done.stdout[-3000:]}


def ceilings() -> dict[str, float]:
    """What this chip really reaches: bytes/s of a device copy, operations/s of a bf16 product."""
    import torch
    from triton.testing import do_bench

    a = torch.randn(1 << 28, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    copied = 2 * a.nbytes / (do_bench(lambda: b.copy_(a), return_mode="median") * 1e-3)
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = 2 * 8192**3 / (do_bench(lambda: x @ x, return_mode="median") * 1e-3)
    return {"bytes_per_second": copied, "operations_per_second": product}


def cases(tiny: bool) -> Iterator[Case]:
    import torch

    device = torch.device("cpu" if tiny else "cuda")
    dtype = torch.float32 if tiny else torch.bfloat16
    shapes = [(3, 40, 64), (80, 40, 64)] if tiny else []
    if not tiny:
        shapes += [(m, n, 4096) for n in (6144, 28672) for m in (1, 16, 64, 256)]
        shapes += [(2048, 8192, 21760), (8192, 4096, 4096)]
    for m, n, k in shapes:
        yield matmul_case(m, n, k, device, dtype)
    # (tokens, experts, of each token, N, K): Mixtral 8x7B, Qwen3 30B-A3B
    mixtures = [(3, 4, 2, 40, 64), (80, 2, 2, 40, 64)] if tiny else []
    if not tiny:
        mixtures += [(t, 8, 2, 28672, 4096) for t in (1, 16, 2048)]
        mixtures += [(t, 128, 8, 1536, 2048) for t in (1, 16, 256, 4096)]
    for sizes in mixtures:
        yield grouped_matmul_case(*sizes, device, dtype)
    for bits in (8, 4):
        for m, n, k in shapes:
            if m <= 2048:
                yield weight_only_case(bits, m, n, k, device, dtype)
    for m, k in [(3, 100)] if tiny else [(64, 4096), (8192, 4096), (8192, 14336)]:
        yield quantize_case(m, k, device, dtype)
    for m, k in [(3, 100)] if tiny else [(64, 4096), (8192, 4096)]:
        yield rms_norm_case(m, k, device, dtype)
    for m, k in [(3, 100)] if tiny else [(64, 14336), (8192, 14336)]:
        yield silu_mul_case(m, k, device, dtype)
    yield rotary_case(3 if tiny else 8192, device, dtype)
    yield sample_case(*((3, 100) if tiny else (64, 128256)), device)
    sizes = [(2, 100), (1, 600)] if tiny else [(1, 8192), (1, 131072), (16, 8192), (16, 32768), (64, 4096)]
    for formula in ("keys", "min_max", "mean_std"):
        for batch, context in [(2, 300)] if tiny else [(16, 8192), (16, 32768), (1, 131072)]:
            yield sparse_case(batch, context, formula, device, dtype, tiny)
    for int8 in (False, True):
        for batch, context in [(2, 400)] if tiny else [(1, 8192), (1, 32768), (1, 131072)]:
            yield prompt_case(batch, context, int8, device, dtype, tiny)
        for batch, context in sizes:
            yield attention_case(batch, 1, context, int8, device, dtype, tiny)
        for context in [70] if tiny else [2048, 8192]:
            yield attention_case(1, context, context, int8, device, dtype, tiny)


def random_rows(m: int, k: int, device: object) -> Any:
    import torch

    from penstock.kernels.quantized_rows import QuantizedRows

    return QuantizedRows(
        values=torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device),
        scale=torch.rand(m, 1, device=device) + 0.1,
        zero=torch.randint(-128, 128, (m, 1), device=device).float(),
    )


def matmul_case(m: int, n: int, k: int, device: object, dtype: object) -> Case:
    import torch

    from penstock.kernels.gpu.int8_matmul import int8_matmul, sum_rows

    copies = max(1, min(64, math.ceil(2 * L2_BYTES / (n * k))))
    rows = random_rows(m, k, device)
    x = rows.values
    weights = [torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device) for _ in range(copies)]
    weight_scale = torch.rand(n, device=device)
    sums = [sum_rows(weight, weight_scale) for weight in weights]

    def run(index: int) -> torch.Tensor:
        return int8_matmul(rows, weights[index], weight_scale, sums[index], out_dtype=dtype)

    def error() -> float:
        exact = rows.of(slice(16)).dequantized().double() @ weights[0].double().T * weight_scale.double()
        return relative(run(0)[:16], exact)

    half = x.to(dtype)
    half_weights: list[torch.Tensor] = []
    baselines: dict[str, Callable[[int], object]] = {}
    if x.is_cuda:
        half_weights += [weight.to(dtype) for weight in weights[: max(1, copies // 2)]]
        baselines["torch bf16"] = lambda index: half @ half_weights[index % len(half_weights)].T
        if m > 16:
            baselines["torch._int_mm"] = lambda index: torch._int_mm(x, weights[index].T)
    return Case(
        f"int8_matmul {m}x{n}x{k}", run, error, baselines, n * k + m * k + 2 * m * n, 2 * m * n * k, copies
    )


def grouped_matmul_case(
    tokens: int, experts: int, top_k: int, n: int, k: int, device: object, dtype: object
) -> Case:
    """Tokens choose experts at random; which they chose rotates, as few tokens read few experts' weights."""
    import torch

    from penstock.kernels.gpu.grouped_int8_matmul import grouped_int8_matmul
    from penstock.kernels.gpu.int8_matmul import sum_rows
    from penstock.kernels.routing import Routing

    rows = random_rows(tokens, k, device)
    x = rows.values
    weight = torch.randint(-127, 128, (experts, n, k), dtype=torch.int8, device=device)
    weight_scale = torch.rand(experts, n, device=device)
    sums = sum_rows(weight, weight_scale)
    routings = [
        Routing.of(torch.rand(tokens, experts, device=device).topk(top_k).indices, experts)
        for _ in range(2 if not x.is_cuda else 16)
    ]

    def run(index: int) -> torch.Tensor:
        own = routings[index]
        return grouped_int8_matmul(rows, weight, weight_scale, sums, own.offsets, own.tokens, out_dtype=dtype)

    def error() -> float:
        worst = 0.0
        for expert, share in list(routings[0].shares())[:4]:
            own = rows.of(routings[0].tokens[share].long()[:16]).dequantized().double()
            exact = own @ weight[expert].double().T * weight_scale[expert].double()
            worst = max(worst, relative(run(0)[share][:16], exact))
        return worst

    baselines: dict[str, Callable[[int], object]] = {}
    if x.is_cuda and hasattr(torch.nn.functional, "grouped_mm"):
        half = weight.to(dtype).transpose(1, 2)
        gathered = [x[own.tokens.long()].to(dtype) for own in routings]
        baselines["torch grouped_mm bf16"] = lambda index: torch.nn.functional.grouped_mm(
            gathered[index], half, offs=routings[index].offsets[1:]
        )
    count = tokens * top_k
    read = sum(len(list(own.shares())) for own in routings) / len(routings)
    moved = int(read * n * k) + tokens * k + 2 * count * n
    name = f"grouped_int8_matmul {tokens} to {top_k} of {experts} {n}x{k}"
    return Case(name, run, error, baselines, moved, 2 * count * n * k, len(routings))


def weight_only_case(bits: int, m: int, n: int, k: int, device: object, dtype: object) -> Case:
    import torch

    from penstock.kernels.gpu.weight_only_matmul import weight_only_matmul
    from penstock.kernels.quantize_weight import GROUP, pack_int4

    k = math.ceil(k / GROUP) * GROUP
    copies = max(1, min(64, math.ceil(2 * L2_BYTES * 8 / (n * k * bits))))
    most = 2 ** (bits - 1) - 1
    integers = [
        torch.randint(-most, most + 1, (n, k), dtype=torch.int8, device=device) for _ in range(copies)
    ]
    weights = [pack_int4(own) for own in integers] if bits == 4 else integers
    scales = torch.rand(n, k // GROUP if bits == 4 else 1, device=device) + 0.1
    x = torch.randn(m, k, device=device).to(dtype)

    def run(index: int) -> torch.Tensor:
        return weight_only_matmul(x, weights[index], scales)

    def error() -> float:
        grouped = integers[0].double().view(*scales.shape, -1) * scales.double()[..., None]
        return relative(run(0)[:16], x[:16].double() @ grouped.flatten(1).T)

    half_weights: list[torch.Tensor] = []
    baselines: dict[str, Callable[[int], object]] = {}
    if x.is_cuda:
        half_weights += [own.to(dtype) for own in integers[: max(1, copies * bits // 16)]]
        baselines["torch bf16"] = lambda index: x @ half_weights[index % len(half_weights)].T
    moved = n * k * bits // 8 + scales.numel() * 4 + 2 * m * (k + n)
    return Case(
        f"weight_only_matmul W{bits}A16 {m}x{n}x{k}", run, error, baselines, moved, 2 * m * n * k, copies
    )


def quantize_case(m: int, k: int, device: object, dtype: object) -> Case:
    import torch

    from penstock.kernels.gpu.quantize_activation import quantize_activation

    copies = max(1, min(64, math.ceil(2 * L2_BYTES / (2 * m * k))))
    inputs = [torch.randn(m, k, device=device).to(dtype) for _ in range(copies)]

    def plain(index: int) -> object:
        x = inputs[index].float()
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = (high - low) / 255
        zero = -128 - torch.round(low / scale)
        return torch.round(x / scale + zero).clamp_(max=127).to(torch.int8), scale, zero

    def error() -> float:
        return relative(quantize_activation(inputs[0]).dequantized(), inputs[0].double())

    baselines: dict[str, Callable[[int], object]] = {"torch": plain} if inputs[0].is_cuda else {}
    run = lambda index: quantize_activation(inputs[index])  # noqa: E731
    return Case(f"quantize_activation {m}x{k}", run, error, baselines, 3 * m * k, 0, copies)


def rms_norm_case(m: int, k: int, device: object, dtype: object) -> Case:
    """With quantization, against torch's norm and ours of quantizing after it."""
    import torch

    from penstock.kernels.gpu.quantize_activation import quantize_activation
    from penstock.kernels.gpu.rms_norm import rms_norm

    copies = max(1, min(64, math.ceil(2 * L2_BYTES / (2 * m * k))))
    inputs = [torch.randn(m, k, device=device).to(dtype) for _ in range(copies)]
    weight = torch.randn(k, device=device).to(dtype)

    def error() -> float:
        x = inputs[0].double()
        exact = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
        return relative(run(0)[1].dequantized(), exact)

    run = lambda index: rms_norm(inputs[index], weight, 1e-6, pad_to=4)  # noqa: E731
    baselines: dict[str, Callable[[int], object]] = {}
    if inputs[0].is_cuda:
        baselines["torch, then quantize_activation"] = lambda index: quantize_activation(
            torch.nn.functional.rms_norm(inputs[index], (k,), weight, 1e-6)
        )
    return Case(f"rms_norm quantizing {m}x{k}", run, error, baselines, 5 * m * k, 0, copies)


def silu_mul_case(m: int, k: int, device: object, dtype: object) -> Case:
    """With quantization, against torch's gate and ours of quantizing after it."""
    import torch

    from penstock.kernels.gpu.quantize_activation import quantize_activation
    from penstock.kernels.gpu.silu_mul import silu_mul

    copies = max(1, min(16, math.ceil(2 * L2_BYTES / (4 * m * k))))
    inputs = [torch.randn(m, 2 * k, device=device).to(dtype).split(k, dim=1) for _ in range(copies)]

    def error() -> float:
        gate, up = (part.double() for part in inputs[0])
        return relative(run(0)[1].dequantized(), torch.nn.functional.silu(gate) * up)

    run = lambda index: silu_mul(*inputs[index], pad_to=4)  # noqa: E731
    baselines: dict[str, Callable[[int], object]] = {}
    if inputs[0][0].is_cuda:
        baselines["torch, then quantize_activation"] = lambda index: quantize_activation(
            torch.nn.functional.silu(inputs[index][0]) * inputs[index][1]
        )
    return Case(f"silu_mul quantizing {m}x{k}", run, error, baselines, 7 * m * k, 0, copies)


def rotary_case(tokens: int, device: object, dtype: object) -> Case:
    import torch

    from penstock.kernels.gpu.rotary import rotary

    query, key = (
        torch.randn(tokens, heads, 128, device=device).to(dtype).transpose(0, 1) for heads in (32, 8)
    )
    cos, sin = torch.randn(2, tokens, 128, device=device).to(dtype).unbind()

    def plain(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def error() -> float:
        low, high = query.double().chunk(2, dim=-1)
        exact = query.double() * cos.double() + torch.cat((-high, low), -1) * sin.double()
        return relative(run(0)[0], exact)

    run = lambda index: rotary(query, key, cos, sin)  # noqa: E731
    baselines = {"torch": lambda index: (plain(query), plain(key))} if query.is_cuda else {}
    return Case(f"rotary {tokens}", run, error, baselines, 4 * tokens * 40 * 128, 0, 1)


def sample_case(rows: int, vocab_size: int, device: object) -> Case:
    """Top-k and top-p of every row, against sorting it; the error is the share of rows that drew another token than a
    CPU."""
    import torch

    from penstock.kernels.cpu import sample as cpu
    from penstock.kernels.draw import Draw
    from penstock.kernels.gpu.sample import draw_rows, parameters

    logits = torch.randn(rows, vocab_size, device=device) * 3
    draws = [Draw(0.8, 50, 0.95, 0.0, seed, 7) for seed in range(rows)]

    def error() -> float:
        expected = cpu.sample(logits.cpu().clone(), draws)[0]
        return float((run(0)[0].cpu() != expected).double().mean())

    def plain(index: int) -> torch.Tensor:
        values, order = logits.sort(dim=-1, descending=True)
        shares = (values[:, :50] / 0.8).softmax(-1)
        shares = shares * (shares.cumsum(-1) - shares < 0.95)
        return order.gather(1, torch.multinomial(shares, 1))

    asked = parameters(draws, logits.device)
    run = lambda index: draw_rows(logits, *asked)  # noqa: E731
    baselines: dict[str, Callable[[int], object]] = {"torch, sorting": plain} if logits.is_cuda else {}
    return Case(f"sample {rows}x{vocab_size}", run, error, baselines, 4 * rows * vocab_size, 0, 1)


def attention_case(
    batch: int,
    queries: int,
    context: int,
    int8: bool,
    device: object,
    dtype: object,
    tiny: bool,
    dim: int | None = None,
) -> Case:
    """`queries` 1: a decode of `batch` sequences; else a whole prompt."""
    import torch

    from penstock.kernels.gpu.paged_attention import paged_attention
    from penstock.kernels.gpu.paged_batch import PagedBatch
    from penstock.kernels.gpu.store_kv import store_kv
    from penstock.kernels.span import Span

    heads, kv_heads, dim = (4, 2, dim or 64) if tiny else (32, 8, dim or 128)
    pages_each = math.ceil(context / 64)
    num_pages = batch * pages_each + 1
    width = 1 if int8 else torch.empty(0, dtype=dtype).element_size()
    kv_bytes = batch * context * kv_heads * 2 * (dim * width + (4 if int8 else 0))
    copies = max(1, min(8, math.ceil(2 * L2_BYTES / kv_bytes)))
    order = (torch.randperm(num_pages - 1) + 1).view(batch, pages_each).tolist()
    whole = [Span(table, 0, context) for table in order]
    sets = []
    for _ in range(copies):
        pages = torch.empty(
            num_pages, kv_heads, 2, 64, dim, device=device, dtype=torch.int8 if int8 else dtype
        )
        scales = torch.empty(pages.shape[:-1], device=device) if int8 else None
        key, value = (torch.randn(batch * context, kv_heads, dim, device=device).to(dtype) for _ in "kv")
        store_kv(key, value, pages, scales, None, PagedBatch.build(whole, pages.device))
        sets.append((pages, scales, key, value))
    query = torch.randn(batch * queries, heads, dim, device=device).to(dtype)
    spans = [Span(table, context - queries, queries) for table in order]
    paged = PagedBatch.build(spans, query.device)
    scaling = dim**-0.5

    def run(index: int) -> torch.Tensor:
        pages, scales, _, _ = sets[index]
        return paged_attention(query, pages, scales, paged, scaling=scaling).out

    def error() -> float:
        pages, scales, _, _ = sets[0]
        flat = pages.double() if scales is None else pages.double() * scales.double()[..., None]
        own = flat[order[0]].permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :context]
        keys, values = (side.repeat_interleave(heads // kv_heads, 0) for side in own)
        scores = query[queries - 1].double()[:, None] @ keys.transpose(1, 2) * scaling
        exact = (scores.softmax(-1) @ values)[:, 0]
        return relative(run(0)[queries - 1], exact)

    baselines: dict[str, Callable[[int], object]] = {}
    if query.is_cuda:

        def sdpa(index: int) -> object:
            _, _, key, value = sets[index]
            shaped = [
                x.view(batch, -1, n, dim).transpose(1, 2)
                for x, n in ((query, heads), (key, kv_heads), (value, kv_heads))
            ]
            return torch.nn.functional.scaled_dot_product_attention(
                *shaped, is_causal=queries > 1, enable_gqa=True
            )

        baselines["SDPA, contiguous bf16"] = sdpa
    pairs = context * (context + 1) // 2 if queries > 1 else context
    kind = "int8" if int8 else "float"
    name = f"paged_attention {kind} {'prefill' if queries > 1 else 'decode'} {batch}x{context}"
    return Case(name, run, error, baselines, kv_bytes, 4 * batch * heads * dim * pairs, copies)


def sparse_case(
    batch: int,
    context: int,
    formula: str,
    device: object,
    dtype: object,
    tiny: bool,
    dim: int | None = None,
    int8: bool = True,
) -> Case:
    """A decode over pages that keeps 95 % of the attention, of which a few keys have most; against our dense one."""
    import torch

    from penstock.kernels.gpu.paged_attention import paged_attention
    from penstock.kernels.gpu.paged_batch import PagedBatch
    from penstock.kernels.gpu.sparse_attention import KEYS, MEAN_STD, MIN_MAX, sparse_attention
    from penstock.kernels.gpu.store_kv import store_kv
    from penstock.kernels.span import Span

    heads, kv_heads, dim = (4, 2, dim or 64) if tiny else (32, 8, dim or 128)
    pages_each = math.ceil(context / 64)
    num_pages = batch * pages_each + 1
    order = (torch.randperm(num_pages - 1) + 1).view(batch, pages_each).tolist()
    pages = torch.empty(num_pages, kv_heads, 2, 64, dim, dtype=torch.int8 if int8 else dtype, device=device)
    scales = torch.empty(pages.shape[:-1], device=device) if int8 else None
    code = {"keys": KEYS, "min_max": MIN_MAX, "mean_std": MEAN_STD}[formula]
    summaries = None
    if code != KEYS:
        summaries = torch.empty(num_pages, kv_heads, 4, 2, dim, dtype=dtype, device=device)
    for table in order:
        key, value = (torch.randn(context, kv_heads, dim, device=device) for _ in "kv")
        key[torch.randperm(context)[: context // 100 + 1]] *= 5
        one = PagedBatch.build([Span(table, 0, context)], pages.device)
        store_kv(key.to(dtype), value.to(dtype), pages, scales, summaries, one, formula=max(code, MIN_MAX))
    query = torch.randn(batch, heads, dim, device=device).to(dtype)
    scaling = dim**-0.5
    sparse = PagedBatch.build([Span(table, context - 1, 1, 0.95) for table in order], pages.device)
    dense = PagedBatch.build([Span(table, context - 1, 1) for table in order], pages.device)
    out = torch.zeros_like(query)

    def run(index: int) -> torch.Tensor:
        sparse_attention(query, pages, scales, summaries, sparse, out, scaling=scaling, formula=code)
        return out

    def error() -> float:
        """Against attention over what it selected: how much that should be is a matter of accuracy, not of the kernel."""
        chosen = sparse_attention(query, pages, scales, summaries, sparse, out, scaling=scaling, formula=code)
        flat = pages[order[0]].double()
        if scales is not None:
            flat = flat * scales[order[0]].double()[..., None]
        own = flat.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :context]
        mask = torch.full((kv_heads, pages_each * 4), -math.inf, dtype=torch.float64, device=query.device)
        for head, length in enumerate(chosen.lengths[0].tolist()):
            mask[head, chosen.granules[0, head, : length // 16].long()] = 0.0
        tokens = mask.repeat_interleave(16, 1)[:, :context].repeat_interleave(heads // kv_heads, 0)
        keys, values = (side.repeat_interleave(heads // kv_heads, 0) for side in own)
        scores = query[0].double()[:, None] @ keys.transpose(1, 2) * scaling + tokens[:, None]
        return relative(out[0], (scores.softmax(-1) @ values)[:, 0])

    baselines: dict[str, Callable[[int], object]] = {}
    if query.is_cuda:
        baselines["our dense"] = lambda index: paged_attention(query, pages, scales, dense, scaling=scaling)
    width = pages.element_size() if code == KEYS else 0.25  # bf16 summaries, an eighth of the tokens
    scanned = batch * context * kv_heads * dim * width
    return Case(f"sparse_attention {formula} {batch}x{context}", run, error, baselines, int(scanned), 0, 1)


def prompt_case(
    batch: int,
    context: int,
    int8: bool,
    device: object,
    dtype: object,
    tiny: bool,
    dim: int | None = None,
) -> Case:
    """The last 512 tokens of prompts whose rows keep 95 % of the attention, of which a few keys have most; against dense."""
    import torch

    from penstock.kernels.gpu.paged_attention import paged_attention
    from penstock.kernels.gpu.paged_batch import PagedBatch
    from penstock.kernels.gpu.sparse_prompt import sparse_prompt
    from penstock.kernels.gpu.store_kv import store_kv
    from penstock.kernels.reference.sparse_prompt import sparse_prompt_reference
    from penstock.kernels.span import Span

    heads, kv_heads, dim = (4, 2, dim or 64) if tiny else (32, 8, dim or 128)
    queries = 100 if tiny else 512
    first = (context - queries) // 64 * 64
    pages_each = math.ceil(context / 64)
    order = (torch.randperm(batch * pages_each) + 1).view(batch, pages_each).tolist()
    kind = torch.int8 if int8 else dtype
    pages = torch.empty(batch * pages_each + 1, kv_heads, 2, 64, dim, dtype=kind, device=device)
    scales = torch.empty(pages.shape[:-1], device=device) if int8 else None
    for table in order:
        key, value = (torch.randn(context, kv_heads, dim, device=device) for _ in "kv")
        key[torch.randperm(context)[: context // 1000 + 1]] *= 5
        one = PagedBatch.build([Span(table, 0, context)], pages.device)
        store_kv(key.to(dtype), value.to(dtype), pages, scales, None, one)
    query = torch.randn(batch * (context - first), heads, dim, device=device).to(dtype)
    scaling = dim**-0.5
    sparse, dense = (
        PagedBatch.build([Span(table, first, context - first, mass, True) for table in order], pages.device)
        for mass in (0.95, None)
    )
    out = torch.zeros_like(query)

    def run(index: int) -> torch.Tensor:
        sparse_prompt(query, pages, scales, sparse, out, scaling=scaling)
        return out

    def error() -> float:
        """Against attention over what it selected, in the first block: how much that should be is not the kernel's."""
        chosen = sparse_prompt(query, pages, scales, sparse, out, scaling=scaling)[0]
        flat = pages[order[0]].double() * (1.0 if scales is None else scales[order[0]].double()[..., None])
        rows = min(64, context - first)
        keys, values = flat.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, : first + rows].cpu()
        kept = torch.zeros(kv_heads, first // 64 + 1, dtype=torch.bool)
        for head, count in enumerate(chosen.counts[0].tolist()):
            kept[head, chosen.blocks[0, head, :count].long().cpu()] = True
        own = query[:rows].transpose(0, 1).double().cpu()
        return relative(
            out[:rows].transpose(0, 1).cpu(), sparse_prompt_reference(own, keys, values, first, scaling, kept)
        )

    baselines: dict[str, Callable[[int], object]] = {}
    if query.is_cuda:
        baselines["our dense"] = lambda index: paged_attention(query, pages, scales, dense, scaling=scaling)
    scored = 2 * batch * heads * dim * (context - first) * (context + first) // 2
    kind_name = "int8" if int8 else "float"
    return Case(f"sparse_prompt {kind_name} {batch}x{context}", run, error, baselines, 0, scored, 1)


def relative(found: object, exact: object) -> float:
    difference = (found.double() - exact).abs().amax(-1) / exact.abs().amax(-1)
    worst = float(difference.max())
    return worst if math.isfinite(worst) else math.inf


def measure(case: Case, tiny: bool, ceiling: dict[str, float] | None) -> Row:
    """What fails is a row like others, so that one fault does not hide the next."""
    try:
        return measured(case, tiny, ceiling)
    except Exception as error:
        traceback.print_exc()
        return Row(case.name, None, failure=repr(error)[:300])


def measured(case: Case, tiny: bool, ceiling: dict[str, float] | None) -> Row:
    row = Row(case.name, case.error(), bytes=case.bytes, operations=case.operations)
    if not math.isfinite(row.error):
        return Row(case.name, None, failure="the output is no number")
    if tiny or row.error > TOLERANCE:
        return row
    row.seconds = seconds(case.run, case.copies)
    row.baselines = {name: seconds(run, case.copies) for name, run in case.baselines.items()}
    assert ceiling is not None
    # INT8 multiplies at twice the rate of bf16.
    rate = ceiling["operations_per_second"] * (2 if "int8_matmul" in case.name else 1)
    floor = max(case.bytes / ceiling["bytes_per_second"], case.operations / rate)
    row.of_ceiling = floor / row.seconds
    return row


def seconds(run: Callable[[int], object], copies: int) -> float:
    """Median of a launch as a CUDA graph replays it: without the cost of Python, over rotating inputs."""
    import torch
    from triton.testing import do_bench

    for index in range(copies):
        run(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(copies):
            run(index)
    return do_bench(graph.replay, return_mode="median") * 1e-3 / copies


def show(report: dict[str, object]) -> None:
    print(json.dumps(report["machine"]))
    for row in report.get("kernels", ()):
        took = (
            row["failure"] or "not timed"
            if row["seconds"] is None
            else f"{row['seconds'] * 1e6:9.1f} us  {row['of_ceiling']:.0%} of floor"
        )
        against = "  ".join(f"{n}: {s / row['seconds']:.2f}x" for n, s in (row["baselines"] or {}).items())
        error = "      -" if row["error"] is None else f"{row['error']:.1e}"
        print(f"{row['name']:44} error {error}  {took}  {against}")
    for name, figures in report.items():
        if name.startswith("engine"):
            print(name, {key: round(value, 2) for key, value in figures.items() if isinstance(value, float)})
    if isinstance(tests := report.get("tests"), dict):
        print("tests:", (str(tests["tail"]).strip().splitlines() or ["nothing"])[-1])


if __name__ == "__main__":
    sys.exit(main())
