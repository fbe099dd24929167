"""What a response cost in tokens, in OpenAI's shape."""

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Attributes: tokens of all prompts, of all completions, and prompt tokens that needed no computing."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def as_dict(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
