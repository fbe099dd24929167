"""Whether a judge still keeps its promise: a share of what it judges is looked at, and the rest goes by what that shows.

The promise: at most 1 - quality of all that a route answers is worse than the large tier's answer. Each request that is
looked at is one draw of that: a loss where the small tier's answer was kept and the large one says something else; no loss
where the large tier was asked anyway. The promise is broken when so many losses among so many draws would be rarer than
`DELTA`, at whichever time one looks: the likelihood ratio of a mixture of higher rates against the promised one is a
supermartingale while the promise holds (Ville's inequality; Robbins, Annals of Mathematical Statistics 41, 1970).

Knows no models. Clock injected.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...tables import Route

log = logging.getLogger(__name__)

# How often a promise that holds may be called broken, over all time.
DELTA = 0.01
HOUR = 3600.0
_RATES = 64


class Drift:
    """Of one route, in one process.

    Args:
        share: of judged requests that are looked at, 0..1.
        hourly_tokens: what looking at them may take of the large tier in an hour.
        promise: most losses among all that is answered, 0..1.

    Attributes:
        draws, losses: so far.
        broken: the judge is not asked any more.
        pending: those that are being looked at.
    """

    def __init__(
        self,
        name: str,
        *,
        share: float,
        hourly_tokens: int,
        promise: float,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.draws = self.losses = 0
        self.broken = False
        self.pending: set[asyncio.Task[None]] = set()
        self._name = name
        self._share, self._hourly_tokens, self._promise = share, hourly_tokens, promise
        self._draw, self._clock = draw, clock
        self._left, self._filled = float(hourly_tokens), clock()

    def wants(self) -> bool:
        """Whether to look at the request at hand; decided before it is known what becomes of it, and whatever it may take,
        so that what is looked at is like the rest."""
        return bool(self._share) and self._draw() < self._share and self._has_some_left()

    def reserve(self, tokens: int) -> int | None:
        """Takes what looking at one may take of the large tier, before that is asked, and returns it; None where nothing is
        left. One may take more than is left: then others wait until that is made up for; not for much more than an hour,
        as `tokens` are what a client has named."""
        if not self._has_some_left():
            return None
        reserved = min(tokens, 2 * self._hourly_tokens)
        self._left -= reserved
        return reserved

    def settle(self, reserved: int, spent: int) -> None:
        """Looking at one has ended, and took this."""
        self._left += reserved - spent

    def _has_some_left(self) -> bool:
        now = self._clock()
        self._left += (now - self._filled) * self._hourly_tokens / HOUR
        self._left, self._filled = min(self._left, float(self._hourly_tokens)), now
        return self._left > 0

    def saw(self, *, loss: bool) -> None:
        """What became of a draw."""
        self.draws += 1
        self.losses += loss
        if not self.broken and evidence_against(self._promise, self.losses, self.draws) >= 1 / DELTA:
            self.broken = True
            log.error(
                "The route %s does not keep its promise: %d of %d answers looked at were unlike the large tier's, and at "
                "most %.3g of them was promised. All its requests go to the large tier until it has another router file "
                "or other settings, or the server is started again; run `penstock tune router`.",
                self._name,
                self.losses,
                self.draws,
                self._promise,
            )


class Drifts:
    """Those of all routes; one is the same as long as its route and its router file are: reading settings anew forgets
    nothing."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Drift] = {}

    def of(self, name: str, identity: str, route: "Route", *, quality: float, workers: int) -> Drift:
        """`quality`: that is promised, named by the route or not."""
        key = (name, f"{identity} {route.shadow_share} {route.shadow_budget}")
        if key not in self._known:
            self._known[key] = Drift(
                name,
                share=route.shadow_share,
                hourly_tokens=route.shadow_budget // workers,
                promise=1 - quality,
            )
        return self._known[key]

    async def close(self) -> None:
        """Gives up what is being looked at."""
        pending = [task for drift in self._known.values() for task in drift.pending]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def evidence_against(promise: float, losses: int, draws: int) -> float:
    """How many times likelier the losses are under higher rates, evenly mixed, than under the promised one."""
    if not losses or promise >= 1:
        return 0.0
    promise = max(promise, 1e-9)
    right = draws - losses
    known = losses * math.log(promise) + right * math.log1p(-promise)
    rates = (promise + (1 - promise) * (place + 0.5) / _RATES for place in range(_RATES))
    ratios = [losses * math.log(rate) + right * math.log1p(-rate) - known for rate in rates]
    most = max(ratios)
    return math.exp(min(700.0, most)) * sum(math.exp(ratio - most) for ratio in ratios) / _RATES
