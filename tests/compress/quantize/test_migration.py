"""Scale moved between what writes a tensor and what reads it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.compress.quantize.block import quantize_block
from penstock.compress.quantize.inputs import Inputs, observe
from penstock.compress.quantize.layer import BlockResult
from penstock.compress.quantize.migration import migrate, site_of
from penstock.compress.quantize.precision import Precision
from penstock.compress.quantize.rounding import round_activation

W8A8 = Precision("w8a8")
OUTLIER = 40.0


class Norm(nn.Module):
    """RMSNorm; `offset` 1 is Gemma's."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 - offset + 0.1 * torch.randn(width))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (self.weight + self.offset)


class Block(nn.Module):
    """Norm, attention without scores (what matters here: values repeated for heads), gated MLP."""

    def __init__(self, offset: float = 0.0, router: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.norm = Norm(32, offset)
        self.self_attn = nn.Module()
        self.self_attn.q_proj, self.self_attn.v_proj = nn.Linear(32, 32), nn.Linear(32, 16)
        self.self_attn.o_proj = nn.Linear(32, 32)
        self.self_attn.head_dim = 8
        self.mlp = nn.Module()
        self.mlp.gate_proj, self.mlp.up_proj = nn.Linear(32, 64), nn.Linear(32, 64)
        self.mlp.down_proj = nn.Linear(64, 32)
        self.gate = nn.Linear(32, 4) if router else None

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        h = self.norm(x)
        values = attention.v_proj(h).view(*x.shape[:-1], 2, 1, 8).expand(*x.shape[:-1], 2, 2, 8)
        x = x + attention.o_proj(values.flatten(-3)) * torch.sigmoid(attention.q_proj(h))
        if self.gate is not None:
            x = x + self.gate(h).softmax(-1)[..., :1]
        return x + mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


def with_outliers(block: Block) -> Block:
    """The same function, of which three channels behind the norm, and of the values, are very large."""
    scale = torch.ones(32)
    scale[[3, 17, 30]] = OUTLIER
    norm = block.norm
    norm.weight.data = (norm.weight.data + norm.offset) * scale - norm.offset
    for linear in (block.self_attn.q_proj, block.self_attn.v_proj):
        linear.weight.data /= scale
    return block


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(4, 100, 32, generator=torch.Generator().manual_seed(5))


def seen(block: nn.Module, rows: Tensor) -> list[Inputs]:
    with torch.no_grad():
        return observe(block, lambda _: block(rows), [torch.ones(rows.shape[:2], dtype=torch.bool)])


def output_of(block: nn.Module, rows: Tensor) -> Callable[[], Tensor]:
    def output() -> Tensor:
        with torch.no_grad():
            found: Tensor = block(rows) - rows
        return found

    return output


def test_what_reads_one_tensor_is_found_and_who_wrote_it(rows: Tensor) -> None:
    found = [(inputs.names, inputs.source) for inputs in seen(Block(), rows)]
    assert found == [
        (["self_attn.v_proj", "self_attn.q_proj"], "norm"),
        (["self_attn.o_proj"], None),
        (["mlp.gate_proj", "mlp.up_proj"], None),
        (["mlp.down_proj"], None),
    ]


def test_hessians_are_sums_over_tokens_without_padding(rows: Tensor) -> None:
    block = Block()
    keep = torch.ones(rows.shape[:2], dtype=torch.bool)
    keep[:, 60:] = False
    with torch.no_grad():
        found = observe(block, lambda _: block(rows), [keep])[0]
        h = block.norm(rows[:, :60]).reshape(-1, 32)
    torch.testing.assert_close(found.hessian, h.t() @ h)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_outliers_move_into_the_weights_and_the_function_stays(offset: float, rows: Tensor) -> None:
    block = with_outliers(Block(offset))
    output = output_of(block, rows)
    before = output()
    inputs = seen(block, rows)[0]
    site = site_of(block, inputs, output)
    assert site is not None and site.offset == offset
    torch.testing.assert_close(output(), before, atol=0, rtol=0)  # trying leaves no trace
    wanted = block.self_attn.q_proj.weight.detach().clone()
    x = inputs.sample

    def error(x: Tensor) -> float:
        exact = inputs.sample @ block.self_attn.q_proj.weight.t()
        return float((round_activation(x) @ block.self_attn.q_proj.weight.t() - exact).detach().norm())

    hard = error(x)
    migration = migrate(block, site, inputs, W8A8, torch.bfloat16)
    assert migration is not None and migration.error < 0.2
    assert not torch.equal(block.self_attn.q_proj.weight, wanted)
    assert error(inputs.sample) < 0.5 * hard
    torch.testing.assert_close(output(), before, atol=1e-4, rtol=1e-4)
    # Rounding what is stored in bf16 takes nothing away from it.
    block.norm.weight.data = block.norm.weight.data.bfloat16().float()
    torch.testing.assert_close(output(), before, atol=1e-4, rtol=1e-4)


def test_values_that_heads_share_keep_one_scale(rows: Tensor) -> None:
    block = Block()
    block.self_attn.v_proj.weight.data[5] *= OUTLIER
    block.self_attn.v_proj.bias.data[5] *= OUTLIER
    block.self_attn.o_proj.weight.data[:, [5, 13]] /= OUTLIER
    output = output_of(block, rows)
    before = output()
    inputs = seen(block, rows)[1]
    site = site_of(block, inputs, output)
    assert site is not None and (site.writer, site.repeats, site.group) == ("self_attn.v_proj", 2, 8)
    migration = migrate(block, site, inputs, W8A8, torch.bfloat16)
    assert migration is not None and migration.error < 0.5
    torch.testing.assert_close(output(), before, atol=1e-4, rtol=1e-4)


def test_no_scale_moves_where_something_else_reads_the_tensor(rows: Tensor) -> None:
    block = with_outliers(Block(router=True))
    assert site_of(block, seen(block, rows)[0], output_of(block, rows)) is None


def test_no_scale_moves_where_that_gains_nothing(rows: Tensor) -> None:
    block = Block()
    # Nothing is lost by rounding: activations that are 0 or 1, weights that are integers.
    inputs = seen(block, rows)[0]
    inputs = replace(inputs, sample=(inputs.sample > 0).float())
    for linear in (block.self_attn.q_proj, block.self_attn.v_proj):
        linear.weight.data = torch.sign(linear.weight.data) * 127
    site = site_of(block, inputs, output_of(block, rows))
    assert site is not None
    before = block.norm.weight.detach().clone()
    assert migrate(block, site, inputs, W8A8, torch.bfloat16) is None
    assert torch.equal(block.norm.weight, before)


def quantized(block: Block, rows: Tensor, precisions: dict[str, Precision | None]) -> BlockResult:
    with torch.no_grad():
        return quantize_block(
            block, seen(block, rows), precisions, output_of(block, rows), torch.bfloat16, "model.layers.0"
        )


def test_a_block_says_of_each_layer_what_was_done(rows: Tensor) -> None:
    block = with_outliers(Block())
    names = ["self_attn.v_proj", "self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    result = quantized(block, rows, dict.fromkeys(names, W8A8))
    assert [record.name for record in result.records] == names
    assert set(result.quantized) == set(names)
    first = result.records[0]
    assert first.migration and first.method == "gptq" and first.used == first.asked == "w8a8"
    for record in result.records:
        assert record.output_error is not None and record.nearest_error is not None
        assert 0 < record.output_error <= record.nearest_error < 0.05
    # Whose scale was moved, and where: a norm's weight is stored, and what a linear that was scaled adds.
    moved = {"norm.weight", "mlp.up_proj.bias"} if result.records[-1].migration else {"norm.weight"}
    assert set(result.changed) == moved
    assert result.changed["norm.weight"].dtype is torch.bfloat16


def test_a_linear_that_stays_as_stored_is_not_scaled(rows: Tensor) -> None:
    block = Block()
    block.self_attn.v_proj.weight.data[5] *= OUTLIER
    block.self_attn.o_proj.weight.data[:, [5, 13]] /= OUTLIER
    before = block.self_attn.v_proj.weight.detach().clone()
    result = quantized(block, rows, {"self_attn.o_proj": W8A8})
    assert set(result.quantized) == {"self_attn.o_proj"} and not result.changed
    assert not result.records[0].migration
    assert torch.equal(block.self_attn.v_proj.weight, before)


def test_activations_that_are_no_numbers_are_named(rows: Tensor) -> None:
    from penstock.errors import CompressError

    block: Any = Block()
    block.mlp.gate_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(CompressError, match=r"model\.layers\.0\.mlp\.down_proj is not all numbers"):
        quantized(block, rows, {"mlp.down_proj": W8A8})


def test_a_wrong_place_is_seen_beside_inputs_that_are_much_larger_than_what_the_block_adds(
    rows: Tensor,
) -> None:
    block = Block(router=True)
    large = rows * 1e4
    for (
        parameter
    ) in block.mlp.down_proj.parameters():  # it reads what comes in as it is, and would add as much
        parameter.data.zero_()
    assert site_of(block, seen(block, large)[0], output_of(block, large)) is None
