"""Integers and scales: what they stand for, and which ones a scheme may have."""

import pytest
import torch

from penstock.compress.quantized_tensor import QuantizedTensor

WEIGHT = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("scheme", "group", "step"), [("w8a8", None, 1 / 254), ("w8a16", None, 1 / 250), ("w4a16", 32, 1 / 13)]
)
def test_rounding_moves_no_element_by_more_than_half_a_step(scheme, group, step):
    quantized = QuantizedTensor.nearest(WEIGHT, scheme, group)
    grouped = WEIGHT.view(24, -1, group or 96)
    moved = (quantized.dequantized().view_as(grouped) - grouped).abs()
    assert (moved <= grouped.abs().amax(dim=-1, keepdim=True) * step).all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheme": "w2a16"}, "none of w8a8"),
        ({"values": torch.zeros(4, 64)}, r"\[4, 64\] float32"),
        ({"values": torch.full((4, 64), 8, dtype=torch.int8)}, "from -8 to 7"),
        ({"group": 16}, "group is 16"),
        ({"group": None}, "has groups"),
        ({"scheme": "w8a8"}, "have none"),
        ({"scale": torch.ones(4)}, r"has to be \[4, 2\] float32"),
        ({"scale": torch.full((4, 2), torch.inf)}, "not finite"),
        ({"scale": torch.full((4, 2), 1 / 3)}, "bf16 numbers"),
        ({"values": torch.zeros(4, 80, dtype=torch.int8)}, "no whole groups"),
        ({"zero": torch.zeros(4, 2)}, r"zero is \[4, 2\] float32; it has to be \[4, 2\] int8"),
        ({"zero": torch.zeros(4, 1, dtype=torch.int8)}, r"has to be \[4, 2\] int8"),
        ({"zero": torch.full((4, 2), 8, dtype=torch.int8)}, "zero points of w4a16 have to be from -8 to 7"),
        (
            {"scheme": "w8a8", "group": None, "scale": torch.ones(4, 1), "zero": torch.zeros(4, 1).char()},
            "only w4a16 has them",
        ),
    ],
)
def test_what_no_scheme_has_is_refused(changes, told):
    fitting = {
        "values": torch.zeros(4, 64, dtype=torch.int8),
        "scale": torch.ones(4, 2),
        "group": 32,
        "scheme": "w4a16",
    }
    assert QuantizedTensor(**fitting).dequantized().shape == (4, 64)
    with pytest.raises(ValueError, match=told):
        QuantizedTensor(**fitting | changes)
