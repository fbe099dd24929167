"""What a linear layer can be rounded to: a scheme that kernels know, and in 4 bits the columns that share a scale."""

from dataclasses import dataclass

from ..quantized_tensor import BITS, GROUPS, Scheme

# Of a report: a layer that was left in the model's own floats.
AS_STORED = "as stored"


@dataclass(frozen=True, slots=True)
class Precision:
    """Attributes:
    group: of W4A16, one of GROUPS; None of the others.
    has_zeros: whether each group says which of its integers stands for zero; W4A16 only.
    """

    scheme: Scheme
    group: int | None = None
    has_zeros: bool = False

    @property
    def bits(self) -> int:
        return BITS[self.scheme]

    @property
    def most(self) -> int:
        """The largest integer; the smallest is one beyond its negative."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def steps(self) -> int:
        """Between the smallest integer and the largest."""
        return int(2**self.bits - 1)

    @property
    def makes_up(self) -> bool:
        """Whether a matrix makes up for what was rounded before it, which takes longer to calibrate. In 8 bits that gains
        nothing (measured)."""
        return self.bits < 8

    @property
    def rounds_activations(self) -> bool:
        return self.scheme == "w8a8"

    def bytes_of(self, out_features: int, in_features: int) -> int:
        """What a matrix takes in a file: its integers, two bytes for each scale, and four bits for each zero point."""
        groups = out_features * (in_features // self.group if self.group else 1)
        zeros = groups * self.bits // 8 if self.has_zeros else 0
        return out_features * in_features * self.bits // 8 + 2 * groups + zeros

    def __str__(self) -> str:
        return f"{self.scheme} group {self.group}" if self.group else self.scheme


def fitting(scheme: Scheme, group: int, in_features: int) -> Precision:
    """`scheme` for rows of `in_features`: 4 bits by whole groups of at most `group`, or else in W8A16."""
    if scheme != "w4a16":
        return Precision(scheme)
    for whole in sorted(GROUPS, reverse=True):
        if whole <= group and in_features % whole == 0:
            return Precision(scheme, whole)
    return Precision("w8a16")
