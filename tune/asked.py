"""What one question asks of a server, in the form of OpenAI's API."""

from dataclasses import dataclass
from typing import Any

from ..compress.texts import Example


@dataclass(frozen=True, slots=True)
class Asked:
    """Attributes:
    asked: a conversation that a user's message ends, or a prompt to go on from.
    """

    asked: Example

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.asked.messages else "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        """Of a request, without the model and what is the same for all."""
        if self.asked.messages:
            return {"messages": [dict(message) for message in self.asked.messages]}
        return {"prompt": self.asked.prompt}
