"""A request to Anthropic's API -> the fields of an OpenAI chat request that asks for the same.

What a chat request cannot say is refused by its name here; what the model cannot do is refused later, and `own_words` puts
that in the names of the API that the client knows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from ...errors import InvalidRequestError, UnsupportedParameterError
from ..compat import FieldPolicy
from ..openai_types import convert
from .types import (
    AssistantMessage,
    CountTokensRequest,
    ImageBlock,
    Message,
    MessagesRequest,
    OutputConfig,
    RedactedThinkingBlock,
    SystemMessage,
    TextBlock,
    Thinking,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    UserMessage,
)

# In front of the ids of calls, and not shown to models: the templates of some demand ids of nine characters.
CALL_PREFIX = "toolu_"
VERSION = "anthropic-version"
BETA = "anthropic-beta"
# The second has no temperature, top_p and top_k, which are honoured here with both.
_VERSIONS = ("2023-06-01", "2026-10-21")
# Those that ask for what happens here anyway, or open fields that are looked at themselves.
_NEUTRAL_BETAS = (
    "adaptive-thinking-",
    "advanced-tool-use-",
    "claude-code-",
    "context-management-",
    "effort-",
    "extended-cache-ttl-",
    "fine-grained-tool-streaming-",
    "interleaved-thinking-",
    "messages-",
    "model-context-window-exceeded-",
    "prompt-caching-",
    "structured-outputs-",
    "token-counting-",
    "tools-",
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# From a chat request's names to Anthropic's, in what is said about a request.
_NAMES = (
    (re.compile(r"(tools\[\d+\])\.function\.parameters"), r"\1.input_schema"),
    (re.compile(r"(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\.reasoning_content\b"), ".thinking"),
    (re.compile(r"\.tool_calls\b"), ".tool_use"),
    (re.compile(r"\.tool_call_id\b"), ".tool_use_id"),
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"\bresponse_format\b"), "output_config.format"),
)
_UNKNOWN_TYPE = re.compile(r"(messages\[.*\.type): invalid (?:enum )?value (.*)\.", re.DOTALL)
_MESSAGE = re.compile(r"messages\[(\d+)\]")

Block: TypeAlias = (
    TextBlock | ImageBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A block, and where in the request it stands."""

    where: str
    block: Block


@dataclass(frozen=True, slots=True)
class Translated:
    """What a request comes to.

    Attributes:
        fields: of a chat request.
        places: of each of its messages, where it stood in the request.
        shows_thoughts: whether thoughts are to be told; a chat request has no word for it.
    """

    fields: dict[str, Any]
    places: list[str]
    shows_thoughts: bool

    @contextmanager
    def own_words(self) -> Iterator[None]:
        """Errors about the chat request become errors about the request that it is made of."""
        try:
            yield
        except InvalidRequestError as error:
            param = None if error.param is None else self._renamed(error.param)
            raise type(error)(self._renamed(error.message), param=param) from error

    def _renamed(self, text: str) -> str:
        text = _MESSAGE.sub(self._place, text)
        for chat, own in _NAMES:
            text = chat.sub(own, text)
        return text

    def _place(self, found: re.Match[str]) -> str:
        at = int(found[1])
        return self.places[at] if at < len(self.places) else found[0]


def check_headers(headers: Mapping[str, str], policy: FieldPolicy) -> None:
    """Raises InvalidRequestError for an unknown version, UnsupportedParameterError for betas."""
    version = headers.get(VERSION, _VERSIONS[-1])
    if version not in _VERSIONS:
        raise InvalidRequestError(
            f"{VERSION} is {version!r}; this server speaks {' and '.join(_VERSIONS)}.", param=VERSION
        )
    for beta in filter(None, (beta.strip() for beta in headers.get(BETA, "").split(","))):
        if not beta.startswith(_NEUTRAL_BETAS):
            policy.refuse_or_drop(f"{BETA}:{beta}", f"{BETA} {beta!r} is not supported by this server.")


def to_chat(fields: dict[str, Any], policy: FieldPolicy, *, for_engine: bool) -> Translated:
    """Of a request to /v1/messages.

    `for_engine`: whether the local engine answers, which reads no images, and whose models' thoughts are switched by their
    chat templates. Raises InvalidRequestError or UnsupportedParameterError.
    """
    asked = _parsed(policy.messages(fields), MessagesRequest)
    translated = _translated(asked, policy, for_engine=for_engine)
    translated.fields.update(
        {
            name: value
            for name, value in (
                ("max_tokens", asked.max_tokens),
                ("stop", asked.stop_sequences),
                ("stream", asked.stream),
                ("temperature", asked.temperature),
                ("top_k", asked.top_k),
                ("top_p", asked.top_p),
                ("penstock", asked.penstock),
            )
            if value is not None
        }
    )
    _check_budget(asked, policy)
    return translated


def to_counted_chat(fields: dict[str, Any], policy: FieldPolicy) -> Translated:
    """Of a request to /v1/messages/count_tokens: the chat whose prompt the local engine would read. Raises as `to_chat`."""
    asked = _parsed(policy.count_tokens(fields), CountTokensRequest)
    return _translated(asked, policy, for_engine=True)


def _parsed(fields: dict[str, Any], type_: type[Any]) -> Any:
    """Blocks of unknown types are what this server does not support, not mistakes."""
    try:
        return convert(fields, type_)
    except InvalidRequestError as error:
        unknown = _UNKNOWN_TYPE.fullmatch(error.message)
        if unknown is None:
            raise
        raise UnsupportedParameterError(
            f"{unknown[1]} is {unknown[2]}, which this server does not support here.", param=error.param
        ) from error


def _translated(asked: CountTokensRequest, policy: FieldPolicy, *, for_engine: bool) -> Translated:
    conversation = _Conversation(policy, images=not for_engine)
    conversation.read(asked.system, asked.messages)
    fields: dict[str, Any] = {"model": asked.model, "messages": conversation.messages}
    if asked.tools:
        fields["tools"] = _tools(asked.tools, policy)
    if asked.tool_choice is not None:
        fields |= _choice(asked.tool_choice)
    if asked.thinking is not None:
        fields |= _thinking(asked.thinking, policy, for_engine=for_engine)
    if asked.output_config is not None:
        fields |= _output(asked.output_config, policy)
    omitted = asked.thinking is not None and asked.thinking.display == "omitted"
    return Translated(fields, conversation.places, not omitted)


class _Conversation:
    """The messages of a chat request, as they are read from Anthropic's.

    Consecutive messages of one role are one turn, as Anthropic has it: many chat templates demand that turns alternate.
    """

    def __init__(self, policy: FieldPolicy, *, images: bool) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: list[str] = []
        self._policy = policy
        self._images = images

    def read(self, system: str | list[TextBlock] | None, messages: Sequence[Message]) -> None:
        if not messages:
            raise InvalidRequestError("messages is empty; send at least one message.", param="messages")
        if system:
            self._system("system", _placed("system", system))
        turns: list[tuple[type[Message], str, list[Placed]]] = []
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            blocks = _placed(f"{where}.content", message.content)
            role = type(message)
            if turns and turns[-1][0] is role and role is not SystemMessage:
                turns[-1][2].extend(blocks)
            else:
                turns.append((role, where, blocks))
        for role, where, blocks in turns:
            if role is UserMessage:
                self._user(where, blocks)
            elif role is AssistantMessage:
                self._assistant(where, blocks)
            else:
                self._system(where, blocks)
        if turns[-1][0] is AssistantMessage:
            raise UnsupportedParameterError(
                "messages ends with a message of the assistant; answers are not continued by this server (prefill). "
                "End with a message of the user.",
                param=turns[-1][1],
            )

    def _add(self, where: str, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.places.append(where)

    def _system(self, where: str, blocks: list[Placed]) -> None:
        self._add(where, {"role": "system", "content": self._content(blocks)})

    def _user(self, where: str, blocks: list[Placed]) -> None:
        said: list[Placed] = []
        for placed in blocks:
            block = placed.block
            if not isinstance(block, ToolResultBlock):
                said.append(placed)
                continue
            if said:
                raise InvalidRequestError(
                    f"{placed.where} is a tool_result behind other blocks; results come first.",
                    param=placed.where,
                )
            self._add(placed.where, self._result(placed.where, block))
        if said:
            self._add(where, {"role": "user", "content": self._content(said)})

    def _result(self, where: str, block: ToolResultBlock) -> dict[str, Any]:
        blocks = _placed(f"{where}.content", block.content) if block.content else []
        for placed in blocks:
            if isinstance(placed.block, ImageBlock):
                raise UnsupportedParameterError(
                    f"{placed.where}.type is 'image'; results of tools are text here.",
                    param=f"{placed.where}.type",
                )
        content = self._content(blocks)
        if block.is_error:
            # A chat request has no other place for it, and the model is to know.
            content = (
                f"Error: {content}"
                if isinstance(content, str)
                else [{"type": "text", "text": "Error:"}, *content]
            )
        return {
            "role": "tool",
            "tool_call_id": block.tool_use_id.removeprefix(CALL_PREFIX),
            "content": content,
        }

    def _assistant(self, where: str, blocks: list[Placed]) -> None:
        said: list[Placed] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for placed in blocks:
            block = placed.block
            if isinstance(block, ThinkingBlock):
                if block.thinking:  # empty where thoughts were not shown
                    thoughts.append(block.thinking)
            elif isinstance(block, ToolUseBlock):
                calls.append(_call(block))
            elif isinstance(block, RedactedThinkingBlock):
                self._policy.refuse_or_drop(
                    f"{placed.where}.type",
                    f"{placed.where} is redacted_thinking, which only the model that wrote it can read.",
                )
            elif calls:
                raise UnsupportedParameterError(
                    f"{placed.where} is text behind a tool_use; here text comes before calls.",
                    param=placed.where,
                )
            else:
                said.append(placed)
        message: dict[str, Any] = {"role": "assistant", "content": self._content(said)}
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        if calls:
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        self._add(where, message)

    def _content(self, blocks: list[Placed]) -> str | list[dict[str, Any]]:
        parts = [self._part(placed) for placed in blocks]
        if not parts:
            return ""
        if len(parts) == 1 and parts[0]["type"] == "text":
            return str(parts[0]["text"])
        return parts

    def _part(self, placed: Placed) -> dict[str, Any]:
        block = placed.block
        if isinstance(block, TextBlock):
            if block.citations:
                # The text itself stays; the model is not shown where it was taken from.
                self._policy.refuse_or_drop(
                    f"{placed.where}.citations", f"{placed.where}.citations are not supported by this server."
                )
            return {"type": "text", "text": block.text}
        assert isinstance(block, ImageBlock)
        if not self._images:
            raise UnsupportedParameterError(
                f"{placed.where}.type is 'image'; this model reads text only.", param=f"{placed.where}.type"
            )
        source = block.source
        url = (
            source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"
        )
        return {"type": "image_url", "image_url": {"url": url}}


def _placed(where: str, content: str | Sequence[Block]) -> list[Placed]:
    if isinstance(content, str):
        return [Placed(where, TextBlock(text=content))]
    if not content:
        raise InvalidRequestError(f"{where} is an empty list; send at least one block.", param=where)
    return [Placed(f"{where}[{place}]", block) for place, block in enumerate(content)]


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = orjson.dumps(block.input).decode()
    return {
        "id": block.id.removeprefix(CALL_PREFIX),
        "type": "function",
        "function": {"name": block.name, "arguments": arguments},
    }


def _tools(given: list[dict[str, Any]], policy: FieldPolicy) -> list[dict[str, Any]]:
    tools = []
    for place, fields in enumerate(given):
        where = f"tools[{place}]"
        kind = fields.get("type")
        if kind not in (None, "custom"):
            policy.refuse_or_drop(
                f"{where}.type", f"{where}.type is {kind!r}; tools here are the client's own."
            )
            continue
        try:
            tool = convert(fields, Tool)
        except InvalidRequestError as error:
            param = where + (f".{error.param}" if error.param else "")
            raise InvalidRequestError(f"{where}: {error.message}", param=param) from error
        _check_tool(where, tool, policy)
        function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.strict is not None:
            function["strict"] = tool.strict
        tools.append({"type": "function", "function": function})
    return tools


def _check_tool(where: str, tool: Tool, policy: FieldPolicy) -> None:
    if tool.input_examples:
        policy.refuse_or_drop(
            f"{where}.input_examples", f"{where}.input_examples are not shown to models here."
        )
    if tool.defer_loading:
        policy.refuse_or_drop(
            f"{where}.defer_loading", f"{where}.defer_loading: there is no search for tools here."
        )
    if tool.allowed_callers not in (None, ["direct"]):
        policy.refuse_or_drop(
            f"{where}.allowed_callers", f"{where}.allowed_callers: tools are called directly here."
        )


def _choice(choice: ToolChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if choice.disable_parallel_tool_use is not None:
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if choice.type != "tool":
        return {"tool_choice": _CHOICES[choice.type], **fields}
    if choice.name is None:
        raise InvalidRequestError(
            "tool_choice.type is 'tool', but there is no tool_choice.name; add it.", param="tool_choice.name"
        )
    return {"tool_choice": {"type": "function", "function": {"name": choice.name}}, **fields}


def _thinking(thinking: Thinking, policy: FieldPolicy, *, for_engine: bool) -> dict[str, Any]:
    """ "disabled" is what happens anyway where nothing thinks, and "adaptive" leaves it to the model."""
    if thinking.type == "between_tools":
        policy.refuse_or_drop(
            "thinking.type", "thinking.type 'between_tools' is not supported by this server."
        )
        return {}
    if not for_engine:
        return {}
    # The switch of the templates that have one; others know no such variable.
    return {"chat_template_kwargs": {"enable_thinking": thinking.type != "disabled"}}


def _check_budget(asked: MessagesRequest, policy: FieldPolicy) -> None:
    thinking = asked.thinking
    if thinking is None or thinking.type != "enabled":
        return
    budget = thinking.budget_tokens
    if budget is None:
        raise InvalidRequestError(
            "thinking.type is 'enabled', but there is no thinking.budget_tokens; add it, or send 'adaptive'.",
            param="thinking.budget_tokens",
        )
    # From max_tokens on it bounds nothing that is not bounded already.
    if budget < asked.max_tokens:
        policy.refuse_or_drop(
            "thinking.budget_tokens",
            f"thinking.budget_tokens is {budget}; thoughts are bounded by max_tokens only, {asked.max_tokens}. "
            "Send thinking.type 'adaptive'.",
        )


def _output(config: OutputConfig, policy: FieldPolicy) -> dict[str, Any]:
    if config.effort not in (None, "high"):  # "high" is what is done without it
        policy.refuse_or_drop(
            "output_config.effort", f"output_config.effort {config.effort!r} is not supported by this server."
        )
    if config.format is None:
        return {}
    schema = {"name": "output", "schema": config.format.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
