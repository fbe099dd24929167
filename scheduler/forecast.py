"""When a request that arrives now would get its first token and its last, from what steps take and what is ahead of it.

Rough on purpose: it counts what is queued, not what is to come. It serves to refuse at once what is hopeless.
"""

from .scheduler import Scheduler
from .step_times import StepTimes

# How much one more finished sequence moves the average time between two.
NEWS = 0.1


class Forecast:
    """Remembers how often a running sequence ends, and knows the scheduler's queues."""

    def __init__(self, scheduler: Scheduler, times: StepTimes) -> None:
        self._scheduler = scheduler
        self._times = times
        self._last_end: float | None = None
        self._seconds_between_ends: float | None = None

    def ended(self, now: float) -> None:
        """A running sequence ended, and its place is free."""
        if self._last_end is not None:
            between = now - self._last_end
            known = self._seconds_between_ends
            self._seconds_between_ends = between if known is None else known + NEWS * (between - known)
        self._last_end = now

    def idle(self) -> None:
        """Nothing is live: the time until the next end says nothing of how fast ends follow each other."""
        self._last_end = None

    def first_token(self, tenant: str, priority: int, num_prompt_tokens: int) -> float | None:
        """Seconds until the first token; None where nothing was measured yet."""
        scheduler = self._scheduler
        ahead = [seq for seq in scheduler.waiting if seq.urgency.priority <= priority]
        own = [seq for seq in ahead if seq.tenant == tenant]
        # Tenants take turns: of each other one, at most as much goes first as of this one.
        most = sum(seq.num_uncomputed_tokens for seq in own) + num_prompt_tokens
        others: dict[str, int] = {}
        for seq in ahead:
            if seq.tenant != tenant:
                others[seq.tenant] = others.get(seq.tenant, 0) + seq.num_uncomputed_tokens
        prompts = [seq for seq in scheduler.running if seq.num_uncomputed_tokens > 1]
        tokens = sum(seq.num_uncomputed_tokens for seq in prompts)
        tokens += most + sum(min(most, other) for other in others.values())
        decodes = [seq for seq in scheduler.running if seq.num_uncomputed_tokens == 1]
        context = max((seq.num_computed_tokens for seq in prompts), default=0)
        room = scheduler.prompt_room(decodes, len(prompts) + len(ahead) + 1, context)
        step = self._times.seconds(len(decodes) + min(room, tokens))
        if step is None:
            return None
        seconds = step * max(1.0, tokens / room)
        places = scheduler.max_num_seqs - len(scheduler.running)
        queued = min(len(ahead), len(own) * (len(others) + 1) + len(others))
        if queued >= places and self._seconds_between_ends is not None:
            seconds = max(seconds, (queued - places + 1) * self._seconds_between_ends + step)
        return seconds

    def next_tokens(self, num_tokens: int) -> float:
        """Seconds for a sequence's next tokens, beside those that run now."""
        step = self._times.seconds(min(len(self._scheduler.running) + 1, self._scheduler.max_num_seqs))
        return num_tokens * (step or 0.0)
