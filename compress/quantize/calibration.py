"""Which texts a model is calibrated on, which its precisions are chosen by, which it is judged by: never the same ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import CompressError
from ..own_texts import up_to
from ..texts import Tokens

# GPTQ needs more rows than a layer has columns to tell them apart; most models' answers change little beyond this.
CALIBRATION_TOKENS = 65_536
SELECTION_TOKENS = 4_096
HELD_BACK_TEXTS = 256
# Of the texts, what the result is judged by, and what precisions are chosen by.
HELD_BACK_SHARE, SELECTION_SHARE = 0.25, 0.125
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


def divide(others: Sequence[Tokens], held_back: Sequence[Tokens]) -> Texts:
    """What is not held back is in part chosen by, in part calibrated on, each up to its bound, in an order that depends on
    nothing but the texts' number.

    Raises CompressError where they are too few.
    """
    count = len(others) + len(held_back)
    if count < LEAST_TEXTS:
        raise CompressError(
            f"{count} different texts are too few to calibrate on some and judge by others; "
            f"give at least {LEAST_TEXTS}, and hundreds for sound figures."
        )
    order = random.Random(SEED)
    others, held_back = order.sample(others, len(others)), order.sample(held_back, len(held_back))
    chosen_by = int(SELECTION_SHARE * count)
    calibration = up_to(others[chosen_by:], CALIBRATION_TOKENS)
    tokens = sum(len(text.ids) for text in calibration)
    if tokens < LEAST_TOKENS:
        raise CompressError(
            f"{tokens} tokens to calibrate on are too few; give texts of at least {2 * LEAST_TOKENS} tokens together, "
            "better fifty thousand."
        )
    return Texts(
        calibration,
        up_to(others[:chosen_by], SELECTION_TOKENS),
        held_back[:HELD_BACK_TEXTS],
    )


def judged_by(texts: Texts, others: Sequence[Tokens]) -> Texts:
    """`others` in the place of what was held back, but for those that the model is rounded by.

    Raises CompressError where fewer than two are left.
    """
    used = {tuple(text.ids) for text in (*texts.calibration, *texts.selection)}
    left = [text for text in others if tuple(text.ids) not in used]
    if len(left) < 2:
        raise CompressError(
            f"Of the {len(others)} texts to judge by, {len(others) - len(left)} are among those that the model is rounded "
            "by; give at least two others.",
            param="judge",
        )
    return replace(texts, held_back=left)
