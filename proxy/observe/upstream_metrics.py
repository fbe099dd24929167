"""The health of upstreams, as whoever asks them tells it: attempts, breaker, time to the first token, tokens, money.

Names are those of the configuration, so that their series are few.
"""

from typing import Literal

from prometheus_client import CollectorRegistry, Gauge

from .record import RequestRecord
from .series import Figures

AttemptOutcome = Literal[
    "success", "refused", "rate_limited", "server_error", "connect_error", "timeout", "broken", "aborted"
]
"""How one attempt ended, until its first token: that came; refused as the client's fault (4xx); 429; 5xx; no connection; one
of the timeouts; an answer that ended before or is malformed; given up, our client having left or another being faster."""
BreakerState = Literal["closed", "half_open", "open"]
_BREAKER_VALUES: dict[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}

_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60, 120)


class UpstreamMetrics:
    """The figures of one upstream in this process."""

    def __init__(self, family: "UpstreamFamily", name: str) -> None:
        self._family = family
        self._name = name
        self._breaker: BreakerState | None = None

    def attempt(self, outcome: AttemptOutcome, breaker: BreakerState) -> None:
        """One has ended, and so the breaker stands now."""
        self._family.attempts[self._name, outcome].inc()
        if breaker != self._breaker:
            self._breaker = breaker
            self._family.breakers.labels(self._name).set(_BREAKER_VALUES[breaker])

    def first_token(self, seconds: float) -> None:
        """From the attempt's begin to the answer's first token, or to all of an answer that is no stream."""
        self._family.first_tokens[(self._name,)].observe(seconds)

    def answered(self, record: RequestRecord, cost: float | None) -> None:
        """What an answer took, as far as it is known: an answer without usage, or without a price, is counted as such."""
        family, name = self._family, self._name
        if record.prompt_tokens is None or record.completion_tokens is None:
            family.unknown[name, "usage"].inc()
        for kind, tokens in (
            ("prompt", record.prompt_tokens),
            ("cached", record.cached_tokens),
            ("completion", record.completion_tokens),
        ):
            if tokens:
                family.tokens[name, kind].inc(tokens)
        if cost is None:
            family.unknown[name, "cost"].inc()
        else:
            family.costs[(name,)].inc(cost)


class UpstreamFamily:
    """The series of all upstreams; `registry` is that of `figures`."""

    def __init__(self, figures: Figures, registry: CollectorRegistry) -> None:
        self.attempts = figures.counter(
            "penstock_upstream_attempts",
            "Attempts at an upstream by how they ended, until the first token: success, refused, rate_limited, "
            "server_error, connect_error, timeout, broken, aborted.",
            *("upstream", "outcome"),
        )
        self.breakers = Gauge(
            "penstock_upstream_breaker_state",
            "Circuit breaker after the last attempt: 0 closed, 1 half open, 2 open; of several workers the worst.",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.first_tokens = figures.histogram(
            "penstock_upstream_first_token_seconds",
            "From an attempt's begin to the first token of its answer, or to all of one that is no stream.",
            "upstream",
            buckets=_FIRST_TOKEN,
        )
        self.tokens = figures.counter(
            "penstock_upstream_tokens",
            "Tokens that upstreams reported: prompt, cached (of these), completion.",
            *("upstream", "kind"),
        )
        self.costs = figures.counter(
            "penstock_upstream_cost",
            "Money for upstreams' answers, in the currency of the configured prices.",
            "upstream",
        )
        self.unknown = figures.counter(
            "penstock_upstream_unknown",
            "Answers whose usage, or cost, nobody knows; they are in no sum.",
            *("upstream", "what"),
        )

    def upstream(self, name: str) -> UpstreamMetrics:
        return UpstreamMetrics(self, name)
