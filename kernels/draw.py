"""What one row's token is drawn by, and the key of its noise; the same on every machine."""

from dataclasses import dataclass

# Constants of the splitmix64 mixing function (Steele, Lea and Flood 2014).
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose one token.

    Attributes:
        temperature: 0 takes the likeliest token, and looks at nothing else here.
        top_k: tokens that may be drawn; below 1 all. top_p, min_p: as in `SamplingParams`.
        seed, position: of the noise.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


def noise_key(seed: int, position: int) -> int:
    """64 bits that a token's id is mixed with."""
    return _mix(_mix(seed & MASK) ^ position)


def _mix(value: int) -> int:
    value = (value + GOLDEN) & MASK
    value = ((value ^ (value >> 30)) * MIX_1) & MASK
    value = ((value ^ (value >> 27)) * MIX_2) & MASK
    return value ^ (value >> 31)
