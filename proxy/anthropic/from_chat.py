"""The fields of an OpenAI chat request -> a request to Anthropic's API that asks for the same.

For upstreams of that API. What it has no word for is refused by name, also where the local engine would honour it.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from ...errors import InvalidRequestError, UnsupportedParameterError
from .to_chat import CALL_PREFIX

_DATA_URL = re.compile(r"data:(image/[a-z+.-]+);base64,(.*)", re.DOTALL)
_SAME = ("model", "stream", "temperature", "top_p", "top_k")
# Read elsewhere in this module, or asking the proxy, not the model.
_READ = frozenset(
    {
        *_SAME,
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "parallel_tool_calls",
        "penstock",
        "response_format",
        "stop",
        "stream_options",
        "tool_choice",
        "tools",
        "user",
    }
)
# Values of other fields that ask for what happens anyway.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
# Labels, and hints that change no answer, whatever they say.
_LABELS = frozenset({"metadata", "prediction", "prompt_cache_key", "safety_identifier"})
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def from_chat(fields: Mapping[str, Any], *, default_max_tokens: int) -> dict[str, Any]:
    """A body for /v1/messages. `default_max_tokens`: where the request leaves it open, which Anthropic's API does not.

    Raises UnsupportedParameterError or InvalidRequestError naming the field.
    """
    for name, value in fields.items():
        known = name in _READ or name in _LABELS or value is None
        if not known and not any(value == each for each in _NEUTRAL.get(name, ())):
            raise UnsupportedParameterError(
                f"{name} is not supported by the model's API (Anthropic's). Remove it.", param=name
            )
    body: dict[str, Any] = {name: fields[name] for name in _SAME if fields.get(name) is not None}
    body["max_tokens"] = _limit(fields, default_max_tokens)
    body |= _Conversation().read(fields.get("messages"))
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        raise UnsupportedParameterError(
            f"temperature is {temperature}; the model's API (Anthropic's) takes at most 1.",
            param="temperature",
        )
    if (stop := fields.get("stop")) is not None:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if fields.get("tools"):
        body["tools"] = [_tool(f"tools[{place}]", tool) for place, tool in enumerate(fields["tools"])]
        body |= _choice(fields.get("tool_choice"), fields.get("parallel_tool_calls"))
    if (user := fields.get("user")) is not None:
        body["metadata"] = {"user_id": user}
    if (form := fields.get("response_format")) is not None and form != {"type": "text"}:
        body["output_config"] = {"format": _format(form)}
    return body


def _limit(fields: Mapping[str, Any], default: int) -> int:
    limits = [fields.get(name) for name in ("max_completion_tokens", "max_tokens")]
    return next((limit for limit in limits if limit is not None), default)


class _Conversation:
    """The messages so far: consecutive ones of one role are one, so that all results of one turn's calls stand together."""

    def __init__(self) -> None:
        self._system: list[dict[str, Any]] = []
        self._messages: list[dict[str, Any]] = []

    def read(self, messages: object) -> dict[str, Any]:
        if not isinstance(messages, list) or not messages:
            raise InvalidRequestError("messages must be a list of at least one message.", param="messages")
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            if not isinstance(message, dict):
                raise InvalidRequestError(f"{where} must be an object.", param=where)
            self._message(where, {name: value for name, value in message.items() if value is not None})
        if self._messages and self._messages[-1]["role"] == "assistant":
            raise UnsupportedParameterError(
                "messages ends with a message of the assistant, which the model's API (Anthropic's) would continue "
                "instead of answering it. End with a message of the user.",
                param=f"messages[{len(messages) - 1}]",
            )
        given: dict[str, Any] = {"messages": self._messages}
        return {"system": self._system, **given} if self._system else given

    def _message(self, where: str, message: dict[str, Any]) -> None:
        role = message.pop("role", None)
        if role in ("system", "developer"):
            blocks = _blocks(where, message.pop("content", None))
            if self._messages:
                # Behind others: to say it first would say something else.
                self._messages.append({"role": "system", "content": blocks})
            else:
                self._system += blocks
        elif role == "user":
            self._add("user", _blocks(where, message.pop("content", None)))
        elif role == "assistant":
            self._add("assistant", _answer(where, message))
        elif role == "tool":
            self._add("user", [_result(where, message)])
        else:
            raise InvalidRequestError(
                f"{where}.role is {role!r}; it must be system, developer, user, assistant or tool.",
                param=f"{where}.role",
            )
        for name in message:
            raise UnsupportedParameterError(
                f"{where}.{name} is not supported by the model's API (Anthropic's).", param=f"{where}.{name}"
            )

    def _add(self, role: str, blocks: list[dict[str, Any]]) -> None:
        if self._messages and self._messages[-1]["role"] == role:
            self._messages[-1]["content"] += blocks
        else:
            self._messages.append({"role": role, "content": blocks})


def _answer(where: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    content, calls = message.pop("content", None), message.pop("tool_calls", None) or []
    blocks = [] if calls and not content else _blocks(where, content)
    return blocks + [_call(f"{where}.tool_calls[{place}]", call) for place, call in enumerate(calls)]


def _call(where: str, call: Any) -> dict[str, Any]:
    try:
        call_id, name = call["id"], call["function"]["name"]
        arguments = orjson.loads(call["function"].get("arguments") or "{}")
    except (KeyError, TypeError, orjson.JSONDecodeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"{where} must have an id and a function with a name and arguments that are a JSON object.",
            param=where,
        )
    return {"type": "tool_use", "id": f"{CALL_PREFIX}{call_id}", "name": name, "input": arguments}


def _result(where: str, message: dict[str, Any]) -> dict[str, Any]:
    call_id = message.pop("tool_call_id", None)
    if not isinstance(call_id, str):
        raise InvalidRequestError(
            f"{where}.tool_call_id is {call_id!r}; it must be the id of a call.",
            param=f"{where}.tool_call_id",
        )
    message.pop("name", None)  # the called function's, which the call says
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": CALL_PREFIX + call_id}
    content = message.pop("content", None)
    if content:
        block["content"] = _blocks(where, content)
    return block


def _blocks(where: str, content: object) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(
            f"{where}.content must be a string or a list of parts.", param=f"{where}.content"
        )
    return [_block(f"{where}.content[{place}]", part) for place, part in enumerate(content)]


def _block(where: str, part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url" and isinstance(part.get("image_url"), dict):
        return {"type": "image", "source": _source(f"{where}.image_url", part["image_url"])}
    raise UnsupportedParameterError(
        f"{where}.type is {kind!r}; the model's API (Anthropic's) is sent text and image_url parts only.",
        param=f"{where}.type",
    )


def _source(where: str, image: dict[str, Any]) -> dict[str, str]:
    url = image.get("url")
    if image.get("detail") not in (None, "auto"):
        raise UnsupportedParameterError(
            f"{where}.detail is not supported by the model's API (Anthropic's).", param=f"{where}.detail"
        )
    if isinstance(url, str):
        if data := _DATA_URL.fullmatch(url):
            return {"type": "base64", "media_type": data[1], "data": data[2]}
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
    raise InvalidRequestError(
        f"{where}.url must be a data: URL of an image in base64, or begin with https://.",
        param=f"{where}.url",
    )


def _tool(where: str, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function" or "name" not in function:
        raise UnsupportedParameterError(
            f"{where} is no function; the model's API (Anthropic's) is sent functions only.", param=where
        )
    given: dict[str, Any] = {
        "name": function["name"],
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return given | {
        name: function[name] for name in ("description", "strict") if function.get(name) is not None
    }


def _choice(choice: object, parallel: object) -> dict[str, Any]:
    if choice is None and parallel is not False:
        return {}
    given: dict[str, Any]
    if choice is None:
        given = {"type": "auto"}
    elif isinstance(choice, str) and choice in _CHOICES:
        given = {"type": _CHOICES[choice]}
    elif (
        isinstance(choice, dict) and isinstance(choice.get("function"), dict) and "name" in choice["function"]
    ):
        given = {"type": "tool", "name": choice["function"]["name"]}
    else:
        raise InvalidRequestError(
            'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}.',
            param="tool_choice",
        )
    if parallel is False and given["type"] != "none":
        given["disable_parallel_tool_use"] = True
    return {"tool_choice": given}


def _format(form: Any) -> dict[str, Any]:
    schema = form.get("json_schema", {}).get("schema") if isinstance(form, dict) else None
    if not isinstance(schema, dict) or form.get("type") != "json_schema":
        raise UnsupportedParameterError(
            "response_format is not supported by the model's API (Anthropic's) but as a json_schema.",
            param="response_format",
        )
    return {"type": "json_schema", "schema": schema}
