"""What the fields of a chat request are called in the Responses request that it was made from."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ...errors import PenstockError

_RENAMED = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "tool_call_id": "call_id",
}
_FIELD = re.compile(rf"\b({'|'.join(_RENAMED)})\b")
# A function's own fields are those of its tool, its call's those of the item.
_FUNCTION = re.compile(r"((?:tools|input)\[\d+\])\.function\.")


class OwnNames:
    """Args: origins: path in the chat request -> path in the Responses request."""

    def __init__(self, origins: Mapping[str, str]) -> None:
        # The longest first: a path stands for all that it begins, but for what has an origin of its own.
        self._origins = sorted(origins.items(), key=lambda origin: -len(origin[0]))

    def told(self, text: str) -> str:
        """A text that names fields of the chat request, with their own names."""
        for path, origin in self._origins:
            text = text.replace(path, origin)
        text = _FUNCTION.sub(r"\1.", text)
        return _FIELD.sub(lambda found: _RENAMED[found[1]], text)

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        try:
            yield
        except PenstockError as error:
            error.message = self.told(error.message)
            if error.param is not None:
                error.param = "input" if error.param in ("messages", "prompt") else self.told(error.param)
            raise
