"""What an output must be, as its caller says; checked for its size at the edge, compiled in the engine (`matcher.py`)."""

import json
from typing import Literal

import msgspec

from ..errors import InvalidRequestError

# Longer sources are refused: compiling them could take seconds.
MAX_SOURCE = 1 << 18
# The request field that each kind comes from, where the grammar does not say.
PARAMETERS = {"json_schema": "response_format", "regex": "guided_regex", "lark": "guided_grammar"}


class Grammar(msgspec.Struct, frozen=True):
    """What an output must be.

    Attributes:
        kind: "json_schema", "regex", or "lark" for a context-free grammar in llguidance's form of Lark.
        source: its text.
        param: the request field to name when it is wrong; None for the usual one of its kind.
        parts: grammars that a Lark source refers to as `@part0`, `@part1`, ...

    Raises InvalidRequestError for a source that is too long.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    param: str | None = None
    parts: "tuple[Grammar, ...]" = ()

    def __post_init__(self) -> None:
        length = len(self.source) + sum(len(part.source) for part in self.parts)
        if length > MAX_SOURCE:
            what = self.param or f"The {self.kind}"
            raise InvalidRequestError(
                f"{what} has {length} characters; the limit is {MAX_SOURCE}.", param=self.field
            )

    @property
    def field(self) -> str:
        """The request field it comes from."""
        return self.param or PARAMETERS[self.kind]

    @classmethod
    def of_json_schema(cls, schema: object) -> "Grammar":
        """Raises InvalidRequestError for what is no schema."""
        if not isinstance(schema, dict | bool):
            raise InvalidRequestError(
                f"The JSON schema is {type(schema).__name__}; it must be an object.", param="response_format"
            )
        return cls("json_schema", json.dumps(schema))
