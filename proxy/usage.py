"""What a response cost in tokens, in OpenAI's shape."""

import msgspec

# More than any answer can take. Sums of what is far beyond would fit into no account.
MOST_TOKENS = 1 << 40


class Usage(msgspec.Struct, frozen=True):
    """Attributes: tokens of all prompts, of all completions, and prompt tokens that needed no computing; of a predicted
    output, those that are in the completions and those that are not, None where nothing was predicted; of the completions,
    those that are thoughts, None where they are not counted."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    reasoning_tokens: int | None = None

    def as_dict(self) -> dict[str, object]:
        figures: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        details = {
            "accepted_prediction_tokens": self.accepted_prediction_tokens,
            "rejected_prediction_tokens": self.rejected_prediction_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }
        if counted := {name: count for name, count in details.items() if count is not None}:
            figures["completion_tokens_details"] = counted
        return figures


def count_of(value: object) -> int | None:
    """A number of tokens that an upstream told; None for what is none, and then nobody knows it."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
