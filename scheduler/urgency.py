"""How soon a request wants its answer, as its caller says; checked once at the edge. Says nothing of what is computed."""

import math

import msgspec

from ..errors import InvalidRequestError

LOWEST, HIGHEST = 9, -9


class Urgency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a request is worth computing.

    Attributes:
        priority: -9..9; a lower number goes first, and may take the place of a higher one that is running.
        ttft_deadline: seconds from arrival within which the first token must come.
        deadline: seconds from arrival within which the last token must come.

    What cannot be in time is refused on arrival, as far as that can be foreseen; what turns out not to be is ended then.

    Raises InvalidRequestError naming the field, its value and its limit.
    """

    priority: int = 0
    ttft_deadline: float | None = None
    deadline: float | None = None

    @property
    def has_deadline(self) -> bool:
        return self.ttft_deadline is not None or self.deadline is not None

    def __post_init__(self) -> None:
        if type(self.priority) is not int or not HIGHEST <= self.priority <= LOWEST:
            raise InvalidRequestError(
                f"priority is {self.priority!r}; it must be a whole number between {HIGHEST} (first) and {LOWEST} (last).",
                param="priority",
            )
        for name in ("ttft_deadline", "deadline"):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InvalidRequestError(
                    f"{name} is {value!r}; it must be a number of seconds above 0.", param=name
                )


ORDINARY = Urgency()
