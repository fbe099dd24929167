"""What one question asks of a server, in the form of OpenAI's API."""

import json
from dataclasses import dataclass
from pathlib import Path
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


def topic_of(line: dict[str, Any]) -> str | None:
    """What a question is about: the same of those that ask the same in other words. None where its line does not say."""
    return None if line.get("topic") is None else str(line["topic"])


def topics_in(file: Path) -> list[str | None]:
    """Of each line of a JSONL file whose lines are known to be objects, but for empty ones."""
    return [topic_of(json.loads(line)) for line in file.read_bytes().split(b"\n") if line.strip()]
