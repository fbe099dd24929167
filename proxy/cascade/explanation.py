"""Why a learned route went as it did, as the header `x-penstock-route`, the access log and the figures tell it."""

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from ..routing.learned import Verdict

HEADER = "x-penstock-route"

# kept, escalated: as the judge said of the small tier's answer; small, large: as it picked by the question alone; cached:
# the large tier's answer was kept from before; failed: the small tier could not answer; unjudged: what is asked for is not
# one answer that could be judged; token_ids: it names tokens by ids, which the small tier may read otherwise; drifted: the
# judge is not trusted any more.
Decision = Literal[
    "kept", "escalated", "small", "large", "cached", "failed", "unjudged", "token_ids", "drifted"
]


class Explanation(msgspec.Struct, frozen=True):
    """`verdict`: None where the judge was not asked."""

    policy: str
    decision: Decision
    verdict: "Verdict | None" = None

    @property
    def text(self) -> str:
        """`cascade; kept; p=0.93; needs=0.90; by=lowest_margin,mean_logprob`: ASCII, for a header."""
        parts = [self.policy, self.decision]
        if self.verdict is not None:
            needed = self.verdict.needed
            parts += [
                f"p={self.verdict.probability:.2f}",
                f"needs={needed:.2f}" if needed <= 1 else "needs=never",
            ]
            if self.verdict.reasons:
                parts.append("by=" + ",".join(self.verdict.reasons))
        return "; ".join(parts)
