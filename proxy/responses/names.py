"""What the fields of a chat request are called in the Responses request that it was made from."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ...errors import InvalidRequestError

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
        self._origins = origins

    def told(self, text: str) -> str:
        """A text that names fields of the chat request, with their own names."""
        # The longest first: a path stands for all that it begins, but for what has an origin of its own.
        for path in sorted(self._origins, key=len, reverse=True):
            text = text.replace(path, self._origins[path])
        text = _FUNCTION.sub(r"\1.", text)
        return _FIELD.sub(lambda found: _RENAMED[found[1]], text)

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Errors about the chat request become errors about the request that it was made from."""
        try:
            yield
        except InvalidRequestError as error:
            param = error.param
            if param is not None:
                param = "input" if param in ("messages", "prompt") else self.told(param)
            raise type(error)(self.told(error.message), param=param) from error
