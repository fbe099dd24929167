"""The walk of one request through a learned route: who is asked, who judges, and who answers.

    the large tier's cache   what it has said before is as good as asking it, and free
    the small tier           held back until its answer is judged; sent on when it is good enough
    the large tier           with what the small one wrote as a draft, which is verified in fewer steps than it is written

A request that is no single answer, that names tokens by ids which the small tier may read otherwise, or whose small tier
fails, goes to the large one; so does all that comes once the route does not keep its promise.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from ...errors import PenstockError
from ..admitting import known_price
from ..routing.learned import Question
from ..routing.target import LocalTarget, Target
from ..tenants.spend import Saving, Spend
from ..upstreams.reading import TokenCounts
from ..vocabulary import field_with_ids, tokenizer_of
from .attempt import PLAIN, Attempt, EscalatedError, Guess
from .explanation import Decision, Explanation
from .question import question_in
from .shadow import Shadow
from .trial import Trial

if TYPE_CHECKING:
    from ..answering import Asked, Started
    from ..routing.learned import Verdict
    from .learned_route import LearnedRoute

log = logging.getLogger(__name__)

Ask = Callable[["Asked", Target], Awaitable["Started"]]
_ENGINE = 500


async def start(
    asked: "Asked", route: "LearnedRoute", ask: Ask, *, may_pass: Callable[[PenstockError], bool]
) -> "tuple[Started, Explanation]":
    """An answer whose first token is there, and why it is this one's.

    Args:
        ask: one target for it.
        may_pass: whether another target may do what one would not.

    Raises PenstockError as the large tier does, and as the small one does where the request itself is at fault.
    """
    walk = _Walk(asked, route, ask, may_pass)
    started, decision, verdict = await walk.start()
    explanation = Explanation(route.settings.policy, decision, verdict)
    return walk.watched(started, decision), explanation


class _Walk:
    def __init__(
        self, asked: "Asked", route: "LearnedRoute", ask: Ask, may_pass: Callable[[PenstockError], bool]
    ) -> None:
        self._asked, self._route = asked, route
        self._ask, self._may_pass = ask, may_pass
        self._shadow: Shadow | None = None
        self._trial: Trial | None = None
        self._trusts_small = False

    async def start(self) -> "tuple[Started, Decision, Verdict | None]":
        route = self._route
        if route.drift.broken:
            return await self._large(), "drifted", None
        if not _is_one_answer(self._asked):
            return await self._large(), "unjudged", None
        if not await self._small_reads_it():
            return await self._large(), "token_ids", None
        question = await self._question()
        self._asked.admission.appraise = self._appraised
        self._shadow = Shadow.drawn(self._asked, route, self._ask)
        if route.settings.policy == "predictive":
            return await self._picked(question)
        kept = await self._kept_of_large()
        if kept is not None:
            self._shadow = None  # nothing was judged
            return kept, "cached", None
        if not self._small_is_up():
            return await self._large(), "failed", None
        return await self._cascade(question)

    async def _small_reads_it(self) -> bool:
        """What the request names by ids means the same to both tiers."""
        context, route = self._asked.context, self._route
        if field_with_ids(self._asked.fields) is None:
            return True
        small, large = [await tokenizer_of(context, tier) for tier in (route.small, route.large)]
        return small is not None and small == large

    def _small_is_up(self) -> bool:
        """It would probably answer now, or is about to for the first time."""
        context, small = self._asked.context, self._route.small
        if not isinstance(small, LocalTarget):
            return context.upstreams[small.upstream].healthy
        backend = context.backends.of(small.served)
        return backend.is_ready or not backend.is_loaded

    async def _picked(self, question: Question) -> "tuple[Started, Decision, Verdict | None]":
        verdict = self._route.judge.picks(question, self._route.settings.quality)
        if not verdict.accept:
            return await self._large(), "large", verdict
        if not self._small_is_up():
            return await self._large(), "failed", verdict
        self._trusts_small = True
        try:
            return await self._small(PLAIN), "small", verdict
        except PenstockError as error:
            self._passed_over(error)
        return await self._large(), "failed", verdict

    async def _cascade(self, question: Question) -> "tuple[Started, Decision, Verdict | None]":
        settings = self._route.settings
        trial = Trial(
            self._route.judge,
            question,
            quality=settings.quality,
            buffer_tokens=settings.buffer_tokens,
            identity=self._route.identity,
        )
        guess: Guess | None = None
        decision: Decision = "escalated"
        self._trial = trial
        try:
            return await self._small(Attempt(trial=trial)), "kept", trial.verdict
        except EscalatedError as escalated:
            trial.verdict, guess = escalated.verdict, escalated.guess
            self._asked.record.waited()
        except PenstockError as error:
            self._passed_over(error)
            decision = "failed"
        return await self._large(guess), decision, trial.verdict

    async def _kept_of_large(self) -> "Started | None":
        if self._asked.context.cache is None:
            return None
        try:
            return await self._ask(self._as(Attempt(only_kept=True)), self._route.large)
        except PenstockError:
            # Whatever else it is is said when it is asked in earnest.
            self._asked.record.waited()
            return None

    async def _small(self, attempt: Attempt) -> "Started":
        return await self._ask(self._as(attempt), self._route.small)

    async def _large(self, guess: Guess | None = None) -> "Started":
        return await self._ask(self._as(Attempt(guess=guess)), self._route.large)

    def _passed_over(self, error: PenstockError) -> None:
        """Raises it where the large tier would say the same; what an upstream refuses may be what we asked for besides."""
        is_ours = isinstance(self._route.small, LocalTarget)
        if is_ours and error.status < _ENGINE and not self._may_pass(error):
            raise error
        asked, target = self._asked, self._route.small
        asked.record.waited()
        asked.context.metrics.fallback(target.series)
        log.warning("%s: %s cannot answer: %s", asked.caller.request_id, target.name, error.logged)

    async def _question(self) -> Question:
        text = question_in(self._asked.fields)
        embeddings = self._asked.context.embeddings
        if self._route.judge.embedding_model is None or embeddings is None:
            return Question(text)
        try:
            (vector,) = await embeddings.embedder.embed([text])
        except PenstockError as error:
            log.warning("%s: the question is not embedded: %s", self._asked.caller.request_id, error.logged)
            return Question(text)
        return Question(text, vector.tolist())

    def _as(self, attempt: Attempt) -> "Asked":
        return msgspec.structs.replace(self._asked, attempt=attempt)

    def _appraised(self, spend: Spend) -> Spend:
        """With what the route saved by this call: what the large tier would have cost, less what was spent; a loss where the
        small one was asked for nothing. Unknown stays unknown."""
        large = self._route.large
        if spend.reused or spend.model != self._route.small.name or spend.model == large.name:
            return spend
        trial = self._trial
        trusts = self._trusts_small if trial is None else trial.verdict is not None and trial.verdict.accept
        cost, seconds = (0.0, 0.0) if not trusts else self._of_large(spend)
        saving = Saving("routing", _less(cost, spend.cost), _less(seconds, spend.engine_seconds))
        return msgspec.structs.replace(spend, savings=(*spend.savings, saving))

    def _of_large(self, spend: Spend) -> tuple[float | None, float | None]:
        """Money and seconds of an engine that the same tokens would take there."""
        context, large = self._asked.context, self._route.large
        prompt, completion = spend.prompt_tokens, spend.completion_tokens
        if prompt is None or completion is None:
            return None, None
        cost = known_price(context, large, TokenCounts(prompt, spend.cached_tokens, completion))
        if not isinstance(large, LocalTarget):
            return cost, 0.0
        account = context.local_of(large.served).service.account
        return cost, account.expected_seconds(prompt + completion) or None

    def watched(self, started: "Started", decision: Decision) -> "Started":
        """The same, looked at once it is sent, if it was drawn for that."""
        if self._shadow is None:
            return started
        return self._shadow.over(started, decision)


def _less(cost: float | None, spent: float | None) -> float | None:
    return None if cost is None or spent is None else cost - spent


def _is_one_answer(asked: "Asked") -> bool:
    prompt = asked.fields.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return (
        asked.choices == 1
        and not several
        and 0 not in map(asked.fields.get, ("max_tokens", "max_completion_tokens"))
    )
