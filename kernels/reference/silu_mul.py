"""The gate of a gated MLP in float64; for tests."""

from torch import Tensor


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, float64."""
    gate = gate.double()
    return gate / (1 + (-gate).exp()) * up.double()
