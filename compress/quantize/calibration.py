"""Which texts a model is calibrated on, which its precisions are chosen by, which it is judged by: never the same ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ...errors import CompressError
from ..texts import Tokens

# GPTQ needs more rows than a layer has columns to tell them apart; most models' answers change little beyond this.
CALIBRATION_TOKENS = 65_536
SELECTION_TOKENS = 4_096
HELD_BACK_TEXTS = 256
LEAST_TOKENS = 1_024
LEAST_TEXTS = 12
SEED = 11


@dataclass(frozen=True, slots=True)
class Texts:
    """Attributes:
    calibration: what layers are rounded by; selection: what precisions are chosen by; held_back: what the result is
        judged by.
    """

    calibration: list[Tokens]
    selection: list[Tokens]
    held_back: list[Tokens]

    @property
    def digest(self) -> str:
        digest = blake2b(digest_size=16)
        for part in (self.calibration, self.selection, self.held_back):
            digest.update(repr([(text.ids, text.learn) for text in part]).encode())
        return digest.hexdigest()


def divide(texts: Sequence[Tokens]) -> Texts:
    """In an order that depends on nothing but their number, without those that are there twice: a quarter is held back, an
    eighth chosen by, the rest calibrated on, each up to its bound.

    Raises CompressError where they are too few.
    """
    different = list({tuple(text.ids): text for text in texts}.values())
    if len(different) < LEAST_TEXTS:
        raise CompressError(
            f"{len(different)} different texts are too few to calibrate on some and judge by others; "
            f"give at least {LEAST_TEXTS}, and hundreds for sound figures."
        )
    random.Random(SEED).shuffle(different)
    held_back, chosen_by = len(different) // 4, len(different) // 8
    calibration = _up_to(different[held_back + chosen_by :], CALIBRATION_TOKENS)
    tokens = sum(len(text.ids) for text in calibration)
    if tokens < LEAST_TOKENS:
        raise CompressError(
            f"{tokens} tokens to calibrate on are too few; give texts of at least {2 * LEAST_TOKENS} tokens together, "
            "better fifty thousand."
        )
    return Texts(
        calibration,
        _up_to(different[held_back : held_back + chosen_by], SELECTION_TOKENS),
        different[:held_back][:HELD_BACK_TEXTS],
    )


def _up_to(texts: Sequence[Tokens], tokens: int) -> list[Tokens]:
    found: list[Tokens] = []
    count = 0
    for text in texts:
        if found and count + len(text.ids) > tokens:
            break
        found.append(text)
        count += len(text.ids)
    return found
