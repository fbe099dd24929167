"""Which request fields are honoured, which leave the output as it is, and what happens to the rest.

Refuse, never ignore: a field that would change the output, and that this server does not honour, is a 400
that names it. With the setting `unsupported = "drop"` it is left out instead, and named in the response
header `x-penstock-dropped`, so that a client written for another server runs, and still nothing is silent.
What the model is asked (message contents, roles) is never dropped, and a wrong value is an error either way.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..config import Unsupported, did_you_mean
from ..errors import UnsupportedParameterError
from .anthropic.types import CountTokensRequest, MessagesRequest
from .openai_types import ChatRequest, CompletionRequest, EmbeddingsRequest, is_token_id


def anything(_value: object) -> bool:
    return True


def one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: any(value == known and type(value) is type(known) for known in values)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


# Fields outside the request types, and the values of them that ask for nothing but what happens anyway.
# `null` is
# OpenAI's spelling of "not given" and always among them.
# Also those of every other endpoint.
NEUTRAL_IN_EMBEDDINGS: dict[str, Callable[[object], bool]] = {"user": anything}
NEUTRAL_IN_CHAT: dict[str, Callable[[object], bool]] = {
    **NEUTRAL_IN_EMBEDDINGS,
    "audio": one_of(),
    "function_call": one_of("none", "auto"),
    "functions": one_of([]),
    "metadata": anything,  # a label on stored completions, which there are none of
    "modalities": one_of(["text"]),
    "moderation": one_of(),
    "prompt_cache_key": anything,  # a routing hint: one engine, one prefix cache
    "prompt_cache_options": one_of({"mode": "implicit"}),
    "prompt_cache_retention": one_of("in_memory"),
    "reasoning_effort": one_of(),
    "safety_identifier": anything,
    "service_tier": one_of("auto", "default"),
    "store": one_of(False),
    "verbosity": one_of("medium"),
    "web_search_options": one_of(),
}
NEUTRAL_IN_COMPLETIONS: dict[str, Callable[[object], bool]] = {
    **NEUTRAL_IN_EMBEDDINGS,
    "best_of": one_of(1),
    "echo": one_of(False),
    "suffix": one_of(""),
}
NEUTRAL_IN_MESSAGES: dict[str, Callable[[object], bool]] = {
    "cache_control": anything,  # prefixes are cached without being asked
    "container": one_of(),
    "context_management": one_of({}, {"edits": []}),
    "diagnostics": one_of(),
    "inference_geo": one_of(),
    "mcp_servers": one_of([]),
    "metadata": anything,
    "service_tier": one_of("auto", "standard_only"),
    "speed": one_of("standard"),
}
_STREAM_OPTIONS = {"include_usage": _is_bool, "include_obfuscation": one_of(False)}


class FieldPolicy:
    """Applies the rule above to one request and remembers what was dropped.

    Raises UnsupportedParameterError from every method when the setting is "refuse".
    """

    def __init__(self, unsupported: Unsupported) -> None:
        self._drops = unsupported == "drop"
        self.dropped: list[str] = []

    def chat(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a chat request that are honoured."""
        return self._shared(self.honoured(fields, ChatRequest.__struct_fields__, NEUTRAL_IN_CHAT))

    def completions(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a completions request that are honoured."""
        return self._shared(
            self.honoured(fields, CompletionRequest.__struct_fields__, NEUTRAL_IN_COMPLETIONS)
        )

    def embeddings(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of an embeddings request that are honoured."""
        return self.honoured(fields, EmbeddingsRequest.__struct_fields__, NEUTRAL_IN_EMBEDDINGS)

    def messages(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request to Anthropic's API that are honoured."""
        return self.honoured(fields, MessagesRequest.__struct_fields__, NEUTRAL_IN_MESSAGES)

    def count_tokens(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The same for counting only."""
        return self.honoured(fields, CountTokensRequest.__struct_fields__, NEUTRAL_IN_MESSAGES)

    def honoured(
        self,
        fields: Mapping[str, Any],
        known: Collection[str],
        neutral: Mapping[str, Callable[[object], bool]],
        *,
        where: str = "",
    ) -> dict[str, Any]:
        """The fields of an object that are `known`. `where`: what stands before their names, as "text."."""
        honoured = {}
        for name, value in fields.items():
            if name in known:
                honoured[name] = value
            elif name not in neutral:
                # Suggesting costs 60 µs, and a body has room for a hundred thousand names.
                hint = "" if self._drops else did_you_mean(name, [*known, *neutral])
                self.refuse_or_drop(where + name, f"Unknown parameter {where + name!r}; {hint}")
            elif not (value is None or neutral[name](value)):
                self.refuse_or_drop(
                    where + name, f"{where + name} with this value is not supported by this server."
                )
        return honoured

    def refuse_or_drop(self, name: str, message: str) -> None:
        if not self._drops:
            raise UnsupportedParameterError(
                f"{message} Remove it, or start the server with --unsupported drop.", param=name
            )
        self.dropped.append(name)

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
        if value is None or _STREAM_OPTIONS.get(name, one_of())(value) or name == "include_usage":
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
