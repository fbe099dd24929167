"""One upstream: its connections, its key, its health, and the attempts at a reply before its first token."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from ... import __version__
from ...errors import (
    PenstockError,
    UpstreamBusyError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnfitError,
)
from ...scheduler.urgency import ORDINARY, Urgency
from ...tables import Upstream as Settings
from ..observe.upstream_metrics import UpstreamMetrics
from ..patience import Patience
from .backoff import PATIENCE_SECONDS, backoff
from .breaker import CircuitBreaker
from .connection import ConnectTimedOut, HttpError, Response
from .http_client import HttpClient
from .latency import Latencies
from .outcome import outcome_of
from .refusal import may_do_better_again, refusal_of
from .reply import UpstreamReply

log = logging.getLogger(__name__)

ANTHROPIC_VERSION = "2023-06-01"
MAX_REFUSAL_BYTES = 1 << 20
# uvloop's timers count milliseconds, and come up to half of one early: before a Retry-After is over.
TIMER_SECONDS = 0.001


class Question(msgspec.Struct, frozen=True):
    """What is sent: `path` behind the upstream's base_url, `headers` beside those of every request."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    stream: bool
    urgency: Urgency = ORDINARY


class Upstream:
    """Made within a running event loop; to be closed.

    Args:
        name: as the settings file calls it.
        figures: told of every attempt.

    Attributes:
        active: questions under way, until their replies are closed.
    """

    def __init__(self, name: str, settings: Settings, figures: UpstreamMetrics) -> None:
        self.name = name
        self.settings = settings
        self._figures = figures
        self.active = 0
        self.breaker = CircuitBreaker(
            failures=settings.breaker_failures, seconds=settings.breaker_seconds, clock=time.monotonic
        )
        self.latencies = Latencies(settings.hedge_percentile)
        self._client = HttpClient(
            settings.base_url, _headers(settings), connect_timeout=settings.connect_timeout
        )
        self._secret = None if settings.api_key is None else settings.api_key.value
        # Waiting here is no fault of the upstream's, as it would seem to be in the pool of connections.
        self._places = asyncio.Semaphore(settings.max_connections)

    @property
    def healthy(self) -> bool:
        return self.breaker.wait == 0

    async def ask(self, question: Question) -> UpstreamReply:
        """A reply whose first token is there (or all of it, where it is no stream), after as many attempts as it takes.

        Raises UpstreamError.
        """
        self.active += 1
        try:
            seconds = min(self.settings.total_timeout, question.urgency.deadline or math.inf)
            deadline = time.monotonic() + seconds
            if self._places.locked():
                await self._wait_for_place(seconds)
            else:
                await self._places.acquire()
        except BaseException:
            self.active -= 1
            raise
        try:
            reply = await self._ask(question, deadline)
        except BaseException:
            self._closed()
            raise
        reply.on_close = self._closed
        return reply

    async def close(self) -> None:
        await self._client.close()

    async def _wait_for_place(self, seconds: float) -> None:
        patience = Patience(seconds)
        try:
            with patience:
                await self._places.acquire()
        except TimeoutError:
            raise UpstreamBusyError(
                f"The upstream {self.name} has {self.settings.max_connections} requests under way (max_connections), "
                f"and none ended within {seconds:g} seconds.",
                retry_after=1.0,
            ) from None
        finally:
            patience.close()

    def _closed(self) -> None:
        self.active -= 1
        self._places.release()

    async def _ask(self, question: Question, deadline: float) -> UpstreamReply:
        for attempt in range(self.settings.retries + 1):
            if (wait := self.breaker.wait) > 0:
                raise UpstreamBusyError(
                    f"The upstream {self.name} is left alone for another {wait:.1f} seconds after it failed or asked for "
                    "it; try again then.",
                    retry_after=wait,
                )
            try:
                late = self.latencies.late
                if late is None:
                    return await self._ask_once(question, deadline)
                return await self._ask_twice(question, deadline, late)
            except PenstockError as error:
                last = attempt == self.settings.retries
                pause = error.retry_after
                if pause is None:
                    pause = backoff(attempt, random.random())
                too_long = pause > PATIENCE_SECONDS or time.monotonic() + pause > deadline
                if last or too_long or not may_do_better_again(error):
                    raise
                log.info(
                    "%s: attempt %d failed (%s); again in %.2f s",
                    self.name,
                    attempt + 1,
                    error.logged,
                    pause,
                )
            await asyncio.sleep(pause + TIMER_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    async def _ask_twice(self, question: Question, deadline: float, late: float) -> UpstreamReply:
        """A second time where the first reply is late; what comes first is taken."""
        first = asyncio.create_task(self._ask_once(question, deadline))
        tasks = {first}
        try:
            await asyncio.wait(tasks, timeout=late)
            twice = not first.done()
            self.latencies.asked(twice=twice)
            if twice:
                tasks.add(asyncio.create_task(self._ask_once(question, deadline)))
            while True:
                done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                answered = [task for task in done if task.exception() is None]
                if answered or not running:
                    task = (answered or list(done))[0]
                    tasks.discard(task)
                    return task.result()
                tasks = running
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(_close_unused)

    async def _ask_once(self, question: Question, deadline: float) -> UpstreamReply:
        started = time.monotonic()
        self.breaker.enter()
        try:
            reply = await self._first_token(question, deadline)
        except BaseException as error:
            self._note_failure(error, question)
            self._figures.attempt(outcome_of(error), self.breaker.state)
            raise
        self.breaker.succeeded()
        seconds = time.monotonic() - started
        self.latencies.add(seconds)
        self._figures.attempt("success", self.breaker.state)
        self._figures.first_token(seconds)
        return reply

    def _note_failure(self, error: BaseException, question: Question) -> None:
        if isinstance(error, UpstreamRefusedError):
            if error.retry_after is not None and error.status in (429, 503):
                self.breaker.rest(error.retry_after)
            elif error.status >= 500:
                self.breaker.failed()
            else:
                self.breaker.succeeded()  # it works: it has looked at the request
        elif isinstance(error, UpstreamUnfitError):
            self.breaker.succeeded()  # it answers, if not this request: one client must not take it from the others
        elif isinstance(error, UpstreamTimeoutError) and question.urgency.has_deadline:
            self.breaker.left()  # for the same reason
        elif isinstance(error, UpstreamError):
            self.breaker.failed()
        else:
            self.breaker.left()

    async def _first_token(self, question: Question, deadline: float) -> UpstreamReply:
        settings = self.settings
        left = max(0.0, deadline - time.monotonic())
        first = min(settings.first_token_timeout, question.urgency.ttft_deadline or math.inf)
        patience = min(left, first) if question.stream else left
        due = time.monotonic() + patience
        try:
            response = await self._client.post(
                question.path, question.headers, question.body, seconds=patience
            )
            response.patience.seconds = due - time.monotonic()
            try:
                with response.patience:
                    return await self._begun(question, response, deadline)
            except BaseException:
                response.close()
                raise
        except TimeoutError as error:
            what = "sent a first token" if question.stream else "answered"
            whole = min(settings.total_timeout, question.urgency.deadline or math.inf)
            limit = first if patience < left else whole
            raise UpstreamTimeoutError(
                f"The upstream {self.name} has not {what} within {limit:g} seconds."
            ) from error
        except ConnectTimedOut as error:
            raise UpstreamConnectError(
                f"The upstream {self.name} has not taken a connection within {settings.connect_timeout:g} seconds."
            ) from error
        except HttpError as error:
            raise UpstreamError(f"The upstream {self.name} cannot be asked: {error}.") from error

    async def _begun(self, question: Question, response: Response, deadline: float) -> UpstreamReply:
        if response.status != 200:
            body = await _read_some(response)
            if self._secret is not None:
                # Some say which key they did not like; ours is not for clients, nor for the log.
                body = body.replace(self._secret.encode(), b"...")
            raise refusal_of(response, body, self.name)
        reply = UpstreamReply(
            self.name,
            response,
            idle_timeout=self.settings.idle_timeout,
            total_timeout=self.settings.total_timeout,
            deadline=deadline,
            secret=self._secret,
        )
        await (reply.begin() if question.stream else reply.read_all())
        return reply


def _headers(settings: Settings) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        # Unpacking costs more than it saves, and packed events come late.
        "Accept-Encoding": "identity",
        "User-Agent": f"penstock/{__version__}",
    }
    key = None if settings.api_key is None else settings.api_key.value
    if settings.format == "anthropic":
        headers["anthropic-version"] = ANTHROPIC_VERSION
        if key is not None:
            headers["x-api-key"] = key
    elif key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers


async def _read_some(response: Response) -> bytes:
    """An error's body, however long it is."""
    body = b""
    with suppress(HttpError):
        while len(body) < MAX_REFUSAL_BYTES and (data := await response.content.readany()):
            body += data
    if response.content.at_eof():
        response.release()
    else:
        response.close()
    return body[:MAX_REFUSAL_BYTES]


def _close_unused(task: "asyncio.Task[UpstreamReply]") -> None:
    """The slower of two replies."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
