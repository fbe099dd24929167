"""One scheduled list of tokens, and the states it goes through. Only the scheduler changes a status."""

import enum
import itertools
from typing import TYPE_CHECKING

from ..config import SparseAttention
from ..kernels.span import PROMPT_BLOCK
from .outputs import FinishReason
from .sampling_params import SamplingParams
from .speculation import Speculation
from .urgency import ORDINARY, Urgency

if TYPE_CHECKING:
    from .matcher import Matcher


class Status(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),
    Status.FINISHED: frozenset(),
}


# In place of a token that is still being computed.
UNKNOWN = -1

_numbers = itertools.count()


class Sequence:
    """Prompt and output tokens, and how far their KV is computed.

    `num_computed_tokens` chases `num_tokens`: prefill, chunked prefill, decode and recompute after preemption are all
    "compute the difference, within the budget". A token is sampled when the chase is over; with a draft behind it,
    several are, of which those count whose guesses before them were right.

    Attributes:
        token_ids: of the prompt and of the output; the last ones may be UNKNOWN while steps that will tell are under way.
        seed: 64-bit key of the sampling noise.
        sparse_attention: of its decodes and its prompt; None attends to all keys.
        adapter: fingerprint of the LoRA adapter that its KV is computed with; None without one.
        speculation: who guesses its next tokens, and what the next step verifies; None where nobody does.
        max_tokens: most output tokens, already resolved against the context length.
        matcher: where its output stands in its grammar; None without one.
        urgency: how soon its caller wants it.
        number: counts sequences in the order of their arrival.
        num_releases: how often its blocks were given back. What was scheduled before is nobody's from then on.
        num_draft_computed_tokens: `num_computed_tokens` of the draft model, which runs behind as it is not always asked.
        num_cached_tokens: tokens whose KV was found in the prefix cache at first admission.
        arrived, queue_seconds: when the sequence was queued, and how long until it was first scheduled.
        block_table: ids of the KV blocks, in order.
        block_hashes: hash chain of the full blocks of `token_ids`, extended as needed by the block manager.
    """

    __slots__ = (
        "adapter",
        "arrived",
        "block_hashes",
        "block_table",
        "finish_reason",
        "index",
        "matcher",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_draft_computed_tokens",
        "num_prompt_tokens",
        "num_releases",
        "number",
        "params",
        "queue_seconds",
        "request_id",
        "seed",
        "sparse_attention",
        "speculation",
        "status",
        "stop_token_ids",
        "tenant",
        "token_ids",
        "urgency",
        "was_admitted",
        "weight",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        seed: int,
        stop_token_ids: frozenset[int] = frozenset(),
        tenant: str = "default",
        weight: float = 1.0,
        sparse_attention: SparseAttention | None = None,
        adapter: str | None = None,
        speculation: Speculation | None = None,
        urgency: Urgency = ORDINARY,
        arrived: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.params = params
        self.max_tokens = max_tokens
        self.seed = seed
        self.stop_token_ids = stop_token_ids
        self.tenant = tenant
        self.weight = weight
        self.sparse_attention = sparse_attention
        self.adapter = adapter
        self.speculation = speculation
        self.urgency = urgency
        self.matcher: Matcher | None = None
        self.number = next(_numbers)
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_draft_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_releases = 0
        self.was_admitted = False
        self.arrived = arrived
        self.queue_seconds: float | None = None
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_ahead(self) -> bool:
        """Whether its last token is still being computed: that there is one is all that is known of it."""
        return self.token_ids[-1] == UNKNOWN

    @property
    def is_last_coming(self) -> bool:
        """Whether the token being computed is the last that it may have."""
        return self.is_ahead and self.num_output_tokens >= self.max_tokens

    def lose_blocks(self) -> None:
        """Its KV is gone, and with it the tokens that would have come of it."""
        self.block_table.clear()
        self.num_computed_tokens = self.num_draft_computed_tokens = 0
        self.num_releases += 1
        while self.is_ahead:
            self.token_ids.pop()

    @property
    def first_token_due(self) -> float | None:
        """On the clock of `arrived`; the end's deadline is one for the beginning too."""
        due = [by for by in (self.urgency.ttft_deadline, self.urgency.deadline) if by is not None]
        return self.arrived + min(due) if due else None

    @property
    def draft(self) -> list[int]:
        """Guesses for the tokens after the last, which the step being computed verifies."""
        return [] if self.speculation is None else self.speculation.draft

    def drop_draft(self) -> None:
        if self.speculation is not None:
            self.speculation.drop()

    @property
    def first_sparse_position(self) -> int | None:
        """Of the prompt, where blocks begin that attend to a part of their keys; None for a dense prompt."""
        sparse = self.sparse_attention
        if sparse is None or sparse.prompt_mass is None:
            return None
        return sparse.min_context // PROMPT_BLOCK * PROMPT_BLOCK  # the block whose last position reaches it

    def last_cut(self, stop: int) -> int:
        """The last position up to `stop` where a chunk may end that is not the last: no block of a sparse prompt is cut."""
        first = self.first_sparse_position
        return stop if first is None or stop <= first else stop // PROMPT_BLOCK * PROMPT_BLOCK

    def move_to(self, status: Status) -> None:
        assert status in TRANSITIONS[self.status], f"{self.status} -> {status}"
        self.status = status

    def __repr__(self) -> str:
        return (
            f"<{self.request_id}[{self.index}] {self.status.name.lower()} "
            f"{self.num_computed_tokens}/{self.num_tokens} tokens, {len(self.block_table)} blocks>"
        )
