"""What an output must be, as its caller says; checked for its size at the edge, compiled in the engine (`matcher.py`)."""

import json
from typing import Literal

import msgspec

from ..errors import InvalidRequestError

# Longer sources are refused: compiling them could take seconds.
MAX_SOURCE = 1 << 18
# The request field that each kind comes from.
PARAMETERS = {"json_schema": "response_format", "regex": "guided_regex", "lark": "guided_grammar"}


class Grammar(msgspec.Struct, frozen=True):
    """What an output must be.

    Attributes:
        kind: "json_schema", "regex", or "lark" for a context-free grammar in llguidance's form of Lark.
        source: its text.

    Raises InvalidRequestError for a source that is too long.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise InvalidRequestError(
                f"The {self.kind} has {len(self.source)} characters; the limit is {MAX_SOURCE}.",
                param=PARAMETERS[self.kind],
            )

    @classmethod
    def of_json_schema(cls, schema: object) -> "Grammar":
        """Raises InvalidRequestError for what is no schema."""
        if not isinstance(schema, dict | bool):
            raise InvalidRequestError(
                f"The JSON schema is {type(schema).__name__}; it must be an object.", param="response_format"
            )
        return cls("json_schema", json.dumps(schema))
