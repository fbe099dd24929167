"""The walk of one request that generates: whom to ask, who answers, and who next where that fails before the first token.

Knows no API's fields beyond those that all have; an API is a `Dialect`.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web

from ..errors import (
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    PenstockError,
    UnsupportedParameterError,
)
from ..scheduler.urgency import ORDINARY, Urgency
from .admitting import admitted_to
from .backend import Served
from .cascade.attempt import PLAIN, Attempt
from .context import CONTEXT, Context
from .controls import CacheControls, cache_controls
from .edge import ADMISSION, Caller, caller_of
from .observe.record import Operation, RequestRecord
from .observe.recorder import record_of
from .openai_types import decode_object, urgency_of
from .request_body import read_body
from .routing.plan import Ask, Plan
from .routing.target import LocalTarget, Target
from .service import Job
from .tenants.admission import Admission
from .tenants.rights import permitted_urgency
from .upstreams.refusal import may_do_better_elsewhere
from .vocabulary import check_vocabulary

if TYPE_CHECKING:
    from .cascade.learned_route import LearnedRoute

log = logging.getLogger(__name__)

# Of a request that names no limit, for comparing what it would cost here and there.
USUAL_MAX_TOKENS = 512
BYTES_PER_TOKEN = 4
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request, whoever is going to answer it.

    Attributes:
        body: as it came; `fields`: the same, decoded.
        model: the name that the client uses.
        attempt: what asking one target is within a learned route.
        unaccounted: the admission of what no tenant has asked for.
    """

    request: web.Request
    context: Context
    caller: Caller
    record: RequestRecord
    body: bytes
    fields: dict[str, Any]
    model: str
    stream: bool
    controls: CacheControls
    attempt: Attempt = PLAIN
    unaccounted: Admission | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for; what is no such number is refused later, by whoever is asked."""
        n, best_of = self.fields.get("n"), self.fields.get("best_of")
        return max(1, n if isinstance(n, int) else 1, best_of if isinstance(best_of, int) else 1)

    @property
    def urgency(self) -> Urgency:
        """For upstreams, of which none knows priorities: but who may not ask for one may not here either.

        Raises InvalidRequestError.
        """
        given = self.fields.get("penstock")
        if not isinstance(given, dict):
            return ORDINARY
        return permitted_urgency(self.caller.account, urgency_of(given))

    @property
    def admission(self) -> Admission:
        """Once it is planned, and until its answer has ended."""
        if self.unaccounted is not None:
            return self.unaccounted
        admission: Admission = self.request[ADMISSION]
        return admission

    def attempted(self, job: Job) -> Job:
        """The same, as this attempt wants it."""
        return msgspec.structs.replace(job, attempt=self.attempt)


class Started(Protocol):
    """An answer whose first token is there. Sending it, in whatever way that ends, also closes it; so does `whole`, which
    gives the body of one that is no stream. `said`: its text, once all of it has been sent; None where that is not known."""

    async def send(self) -> web.StreamResponse: ...
    async def whole(self) -> bytes: ...
    @property
    def said(self) -> str | None: ...


class Ready(msgspec.Struct, frozen=True):
    """An answer that is there as a whole."""

    response: web.Response

    async def send(self) -> web.StreamResponse:
        return self.response

    async def whole(self) -> bytes:
        assert isinstance(self.response.body, bytes)
        return self.response.body

    @property
    def said(self) -> str | None:
        return None


def usual_plan(asked: Asked, ask: Ask) -> Plan:
    """Raises ModelNotFoundError."""
    return asked.context.router.plan(asked.model, ask)


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One of the APIs.

    Attributes:
        local: starts an answer of the local engine.
        remote: starts an answer of an upstream.
        plan: whom to ask.
        generates: answers have tokens of their own.
        default_model: of requests that name none; None: they must.
        operation: what it is to those who watch; None: nothing of interest.
    """

    local: Callable[[Asked, Served], Awaitable[Started]]
    remote: Callable[[Asked, Target], Awaitable[Started]]
    plan: Callable[[Asked, Ask], Plan] = usual_plan
    generates: bool = True
    default_model: Callable[[Context], str] | None = None
    operation: Operation | None = "chat"


async def answer(request: web.Request, dialect: Dialect) -> web.StreamResponse:
    """Raises PenstockError when nobody can answer: what the last one asked has said; and what refuses a tenant."""
    asked = await _read(request, dialect)
    record = asked.record
    record.asks(dialect.operation, model=asked.model, stream=asked.stream)
    ask = _ask(asked) if dialect.generates else Ask(len(asked.body) // BYTES_PER_TOKEN, 0)
    plan = dialect.plan(asked, ask)
    with admitted_to(request, asked.model, plan, ask, asked.choices) as admission:
        try:
            return await (await _start(asked, plan, dialect)).send()
        finally:
            record.cost, record.savings = admission.cost, admission.savings


async def _start(asked: Asked, plan: Plan, dialect: Dialect) -> Started:
    if plan.learned is not None and dialect.generates:
        return await _start_learned(asked, plan.learned, dialect)
    if len(plan.targets) > 1 and dialect.generates:
        await check_vocabulary(asked.context, plan, asked.fields)
    last, record = plan.targets[-1], asked.record
    for target in plan.targets:
        try:
            started = await _ask_target(asked, target, dialect)
        except PenstockError as error:
            if target is last or not _another_may_answer(error):
                raise
            record.waited()
            log.warning("%s: %s cannot answer: %s", asked.caller.request_id, target.name, error.logged)
            asked.context.metrics.fallback(target.series)
            continue
        asked.context.metrics.routed(target.series, plan.reason)
        return started
    raise AssertionError("a plan has targets")


async def _start_learned(asked: Asked, route: "LearnedRoute", dialect: Dialect) -> Started:
    from .cascade import walk  # judges need numpy, and other routes none

    started, explanation = await walk.start(
        asked,
        route,
        lambda given, target: _ask_target(given, target, dialect),
        may_pass=_another_may_answer,
    )
    metrics, record = asked.context.metrics, asked.record
    record.routing = explanation.text
    metrics.judged(route.name, explanation.decision)
    metrics.routed(record.model_series or "", explanation.decision)
    return started


async def _ask_target(asked: Asked, target: Target, dialect: Dialect) -> Started:
    record = asked.record
    record.model, record.model_series, record.upstream = target.name, target.series, None
    record.targets += not asked.attempt.only_kept
    if isinstance(target, LocalTarget):
        return await dialect.local(asked, target.served)
    return await dialect.remote(asked, target)


async def _read(request: web.Request, dialect: Dialect) -> Asked:
    body = await read_body(request)
    fields = decode_object(body)
    model = fields.get("model")
    if model is None and dialect.default_model is not None:
        model = dialect.default_model(request.app[CONTEXT])
    if not isinstance(model, str):
        what = "object missing required field `model`" if model is None else "model: expected `str`"
        raise InvalidRequestError(f"{what}.", param="model")
    extension = fields.get("penstock")
    return Asked(
        request=request,
        context=request.app[CONTEXT],
        caller=caller_of(request),
        record=record_of(request),
        body=body,
        fields=fields,
        model=model,
        stream=fields.get("stream") is True,
        controls=cache_controls(request.headers, extension if isinstance(extension, dict) else None),
    )


def _ask(asked: Asked) -> Ask:
    limits = [limit for name in _LIMITS if isinstance(limit := asked.fields.get(name), int) and limit > 0]
    return Ask(len(asked.body) // BYTES_PER_TOKEN, max(limits, default=USUAL_MAX_TOKENS))


def _another_may_answer(error: PenstockError) -> bool:
    """What this engine has no room for, or does not honour, another may."""
    if isinstance(error, UnsupportedParameterError | ContextLengthError | OverloadedError | EngineDeadError):
        return True
    return may_do_better_elsewhere(error)
