"""What it costs that an answer does not depend on its company: our CPU kernels beside torch's, which may sum in another
order for another batch. One thread, the best of several runs each, in turn: below 1.0 the promise is free.

    python bench/determinism_cost.py
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.int8_matmul import Int8Weight, quantize_weight
from penstock.kernels.cpu.native.library import library, use_threads
from penstock.kernels.cpu.paged_attention import paged_attention
from penstock.kernels.span import Span

HEADS, KV_HEADS, DIM, BLOCK = 14, 2, 64, 32  # of the 0.5B shape
CONTEXTS = [(1024, 1024), (4096, 512), (4096, 8), (1024, 1), (4096, 1)]
PRODUCTS = [(1152, 896), (9728, 896), (896, 4864)]
ROWS = [1, 16, 512]


def best(*ways: Callable[[], object], repeats: int = 15) -> list[float]:
    """Milliseconds of this thread."""
    least = [float("inf")] * len(ways)
    for _ in range(repeats):
        for number, way in enumerate(ways):
            start = time.thread_time()
            way()
            least[number] = min(least[number], 1e3 * (time.thread_time() - start))
    return least


def attention(context: int, rows: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    blocks = -(-context // BLOCK)
    keys, values = torch.randn(2, KV_HEADS, blocks * BLOCK, DIM)
    query = torch.randn(HEADS, rows, DIM)
    batch = attention_batch([Span(list(range(blocks)), context - rows, rows)], BLOCK, native=True)
    mask = None
    if 1 < rows < context:
        mask = torch.ones(rows, context, dtype=torch.bool).tril(context - rows)

    def ours() -> Tensor:
        return paged_attention(query, keys, values, batch, scaling=DIM**-0.5)

    def theirs() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query[None],
            keys[None, :, :context],
            values[None, :, :context],
            attn_mask=mask,
            is_causal=rows == context,
            enable_gqa=True,
        )

    assert torch.allclose(ours().transpose(0, 1), theirs()[0], atol=1e-4)
    return ours, theirs


def product(n: int, k: int, rows: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    plain, scale = quantize_weight(torch.randn(n, k))
    weight, packed = Int8Weight.of(plain, scale), torch.ops.onednn.qlinear_prepack(plain, None)
    zero_points = torch.zeros(n, dtype=torch.int32)
    x = torch.randn(rows, k)

    def theirs() -> Tensor:
        act_scale = x.abs().amax(dim=-1, keepdim=True) / 127
        unsigned = torch.div(x, act_scale).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(0x80)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, packed, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.mul_(act_scale)

    return lambda: weight.matmul(x), theirs


@torch.inference_mode()
def main() -> None:
    if library() is None:
        raise SystemExit(
            "The C kernels cannot be had here; torch's operators serve, and there is nothing to compare."
        )
    torch.set_num_threads(1)
    use_threads(1)
    torch.manual_seed(0)
    print(f"{'':34} {'ours, ms':>9} {'torch, ms':>9} {'ratio':>6}")
    for context, rows in CONTEXTS:
        mine, theirs = best(*attention(context, rows))
        print(f"attention, {rows:4} rows, {context:5} keys    {mine:9.3f} {theirs:9.3f} {mine / theirs:6.2f}")
    for n, k in PRODUCTS:
        for rows in ROWS:
            mine, theirs = best(*product(n, k, rows))
            print(f"product, {rows:4} rows, {n:5} x {k:5}   {mine:9.3f} {theirs:9.3f} {mine / theirs:6.2f}")


if __name__ == "__main__":
    main()
