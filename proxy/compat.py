"""Which request fields are honoured, which leave the output as it is, and what happens to the rest.

Refuse, never ignore: a field that would change the output, and that this server does not honour, is a 400
that names it. With the setting `unsupported = "drop"` it is left out instead, and named in the response
header `x-penstock-dropped`, so that a client written for another server runs, and still nothing is silent.
What the model is asked (message contents, roles) is never dropped, and a wrong value is an error either way.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from ..config import Unsupported, did_you_mean
from ..errors import UnsupportedParameterError
from .anthropic.types import CountTokensRequest, MessagesRequest
from .openai_types import ChatRequest, CompletionRequest, EmbeddingsRequest, is_token_id


def _anything(_value: object) -> bool:
    return True


def _one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: any(value == known and type(value) is type(known) for known in values)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


# Fields outside the request types, and the values of them that ask for nothing but what happens anyway.
# `null` is
# OpenAI's spelling of "not given" and always among them.
_NEUTRAL_EVERYWHERE: dict[str, Callable[[object], bool]] = {"user": _anything}
NEUTRAL_IN_CHAT: dict[str, Callable[[object], bool]] = {
    **_NEUTRAL_EVERYWHERE,
    "audio": _one_of(),
    "function_call": _one_of("none", "auto"),
    "functions": _one_of([]),
    "metadata": _anything,  # a label on stored completions, which there are none of
    "modalities": _one_of(["text"]),
    "moderation": _one_of(),
    "prompt_cache_key": _anything,  # a routing hint: one engine, one prefix cache
    "prompt_cache_options": _one_of({"mode": "implicit"}),
    "prompt_cache_retention": _one_of("in_memory"),
    "reasoning_effort": _one_of(),
    "safety_identifier": _anything,
    "service_tier": _one_of("auto", "default"),
    "store": _one_of(False),
    "verbosity": _one_of("medium"),
    "web_search_options": _one_of(),
}
NEUTRAL_IN_COMPLETIONS: dict[str, Callable[[object], bool]] = {
    **_NEUTRAL_EVERYWHERE,
    "best_of": _one_of(1),
    "echo": _one_of(False),
    "suffix": _one_of(""),
}
NEUTRAL_IN_MESSAGES: dict[str, Callable[[object], bool]] = {
    "cache_control": _anything,  # prefixes are cached without being asked
    "container": _one_of(),
    "context_management": _one_of({}, {"edits": []}),
    "diagnostics": _one_of(),
    "inference_geo": _one_of(),
    "mcp_servers": _one_of([]),
    "metadata": _anything,
    "service_tier": _one_of("auto", "standard_only"),
    "speed": _one_of("standard"),
}
_STREAM_OPTIONS = {"include_usage": _is_bool, "include_obfuscation": _one_of(False)}


class FieldPolicy:
    """Applies the rule above to one request and remembers what was dropped.

    Raises UnsupportedParameterError from every method when the setting is "refuse".
    """

    def __init__(self, unsupported: Unsupported) -> None:
        self._drops = unsupported == "drop"
        self.dropped: list[str] = []

    def chat(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a chat request that are honoured."""
        return self._shared(self._honoured(fields, ChatRequest, NEUTRAL_IN_CHAT))

    def completions(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a completions request that are honoured."""
        return self._shared(self._honoured(fields, CompletionRequest, NEUTRAL_IN_COMPLETIONS))

    def embeddings(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of an embeddings request that are honoured."""
        return self._honoured(fields, EmbeddingsRequest, _NEUTRAL_EVERYWHERE)

    def messages(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request to Anthropic's API that are honoured."""
        return self._honoured(fields, MessagesRequest, NEUTRAL_IN_MESSAGES)

    def count_tokens(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The same for counting only."""
        return self._honoured(fields, CountTokensRequest, NEUTRAL_IN_MESSAGES)

    def refuse_or_drop(self, name: str, message: str) -> None:
        if not self._drops:
            raise UnsupportedParameterError(
                f"{message} Remove it, or start the server with --unsupported drop.", param=name
            )
        self.dropped.append(name)

    def _honoured(
        self,
        fields: dict[str, Any],
        type_: type[msgspec.Struct],
        neutral: dict[str, Callable[[object], bool]],
    ) -> dict[str, Any]:
        honoured = {}
        for name, value in fields.items():
            if name in type_.__struct_fields__:
                honoured[name] = value
            elif name not in neutral:
                known = [*type_.__struct_fields__, *neutral]
                self.refuse_or_drop(name, f"Unknown parameter {name!r}; {did_you_mean(name, known)}")
            elif not (value is None or neutral[name](value)):
                self.refuse_or_drop(name, f"{name} with this value is not supported by this server.")
        return honoured

    def _shared(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Nested values that other servers take and this one does not."""
        options = fields.get("stream_options")
        if isinstance(options, dict):
            fields["stream_options"] = {
                name: value for name, value in options.items() if self._takes_stream_option(name, value)
            }
        bias = fields.get("logit_bias")
        if isinstance(bias, dict):
            fields["logit_bias"] = {key: value for key, value in bias.items() if self._takes_bias(key)}
        return fields

    def _takes_stream_option(self, name: str, value: object) -> bool:
        if value is None or _STREAM_OPTIONS.get(name, _one_of())(value) or name == "include_usage":
            return True
        self.refuse_or_drop(
            f"stream_options.{name}", f"stream_options.{name} is not supported by this server."
        )
        return False

    def _takes_bias(self, key: str) -> bool:
        if is_token_id(key):
            return True
        self.refuse_or_drop(
            f"logit_bias.{key}", f"logit_bias has the key {key!r}, which is no token id (see /tokenize)."
        )
        return False
