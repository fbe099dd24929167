"""Rotary embedding near float64, of strided queries and keys, of whole heads and of a part."""

import pytest
import torch

from penstock.kernels.gpu.rotary import rotary
from penstock.kernels.reference.rotary import rotary_reference

ERRORS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize(("head_dim", "width"), [(64, 64), (80, 80), (96, 48), (128, 32)])
def test_is_near_float64(head_dim, width, dtype, device):
    # As transformers hands them over: [T, H, D] in memory, seen as [H, T, D].
    query, key = (
        torch.randn(3, heads, head_dim, device=device).to(dtype).transpose(0, 1) for heads in (6, 2)
    )
    angles = torch.randn(3, width, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for found, x in zip(rotary(query, key, cos, sin), (query, key), strict=True):
        expected = rotary_reference(x, cos, sin)
        assert found.shape == x.shape and found.dtype is dtype
        assert float((found.double() - expected).abs().max() / expected.abs().max()) < ERRORS[dtype]
        assert torch.equal(found[..., width:], x[..., width:])


def test_a_token_alone_and_none(device):
    query, key = torch.randn(4, 5, 64, device=device), torch.randn(1, 5, 64, device=device)
    cos, sin = torch.randn(2, 5, 64, device=device).unbind()
    whole = rotary(query, key, cos, sin)
    alone = rotary(query[:, 2:3], key[:, 2:3], cos[2:3], sin[2:3])
    assert all(torch.equal(one, every[:, 2:3]) for one, every in zip(alone, whole, strict=True))
    assert rotary(query[:, :0], key[:, :0], cos[:0], sin[:0])[0].shape == (4, 0, 64)


def test_arguments_that_do_not_fit_are_named(device):
    query, key, cos = (torch.ones(shape, device=device) for shape in ((2, 3, 8), (1, 3, 8), (3, 10)))
    with pytest.raises(ValueError, match="cos has 10 channels; it must be even and at most the head's 8"):
        rotary(query, key, cos, cos)
