"""What a request to an upstream asks, as far as its meaning is compared; and which answers may stand for another question's.

As cache_scope.py does for the local engine: one text of the user's is the question, and all around it, with every parameter,
is in its partition. Knows no search.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from ...cache import CachedCompletion, Question, family_key, partition_key
from ..cache_scope import MAX_QUESTION_CHARACTERS, SHOWN_CONTEXT
from ..whole_prompt import whole_prompt

# Fields that promise a form to whoever reads the answer, of OpenAI's API, of Anthropic's, and of vLLM.
_FORMS = frozenset(
    {
        "response_format",
        "output_config",
        "output_format",
        "structured_outputs",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
    }
)


def question_of(names: Mapping[str, str], request: Mapping[str, Any], embedder: str) -> Question | None:
    """What is asked, if it is one text of the user's; None of anything else.

    Args:
        names: tenant, namespace, model and fingerprint, as of `completion_key`.
        request: in the upstream's API, with all that can change the answer.
        embedder: the fingerprint of what embeds.
    """
    found = _asked(request)
    if found is None:
        return None
    whole, around = found
    text = whole.strip()
    if not 0 < len(text) <= MAX_QUESTION_CHARACTERS:
        return None
    before, _, after = whole.partition(text)
    partition = partition_key(**names, embedder=embedder, request={"around": around, "gap": [before, after]})
    family = family_key(
        tenant=names["tenant"], model=names["model"], fingerprint=names["fingerprint"], embedder=embedder
    )
    return Question(partition, family, text, _earlier(request)[-SHOWN_CONTEXT:], "")


def tells_logprobs(fields: Mapping[str, Any]) -> bool:
    logprobs = fields.get("logprobs")
    return logprobs is not None and logprobs is not False  # 0 asks the older API for some


def is_read_by_machines(fields: Mapping[str, Any]) -> bool:
    """Its answer has a form that it was asked for: there every letter counts."""
    return any(fields.get(name) is not None for name in _FORMS)


def is_plain(completion: CachedCompletion) -> bool:
    """One answer, of text alone: those that call tools may say the same and do something else."""
    choice, *others = completion.choices
    if others or choice.finish_reason != "stop" or not choice.text.strip() or choice.wire is None:
        return False
    return not _calls(orjson.loads(choice.wire))


def _calls(answer: Mapping[str, Any]) -> bool:
    """Whether tools are called by an answer as it is kept: of OpenAI's APIs, of Anthropic's, or of a translated one."""
    if "choices" in answer:
        message = answer["choices"][0].get("message") or {}
        return bool(message.get("tool_calls") or message.get("function_call"))
    if "content" in answer:
        return any(block["type"] == "tool_use" for block in answer["content"])
    return any(kind == "name" for kind, *_ in answer["parts"])


def _asked(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The question, and the request with a gap where it stands. What no such API takes is None as well."""
    messages, prompt = request.get("messages"), request.get("prompt")
    if messages is None:
        # An answer that repeats the question is no other's.
        if not isinstance(prompt, str) or request.get("echo"):
            return None
        return prompt, {**request, "prompt": None}
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    text, rest = last.get("content"), None
    if isinstance(text, list):
        text, rest = _only_text(text)
    if not isinstance(text, str):
        return None
    return text, {**request, "messages": [*messages[:-1], {**last, "content": rest}]}


def _only_text(parts: list[Any]) -> tuple[object, list[Any]]:
    """The one text among the parts of a turn, and the parts without it; None where there are several, or none."""
    places = [
        place for place, part in enumerate(parts) if isinstance(part, dict) and part.get("type") == "text"
    ]
    if len(places) != 1:
        return None, parts
    (place,) = places
    return parts[place].get("text"), [*parts[:place], {**parts[place], "text": None}, *parts[place + 1 :]]


def _earlier(request: Mapping[str, Any]) -> str:
    """The turns before, as far as they are texts: for whoever looks into the cache."""
    prompt = whole_prompt(dict(request), "")
    turns = [] if prompt is None or prompt.messages is None else prompt.messages[:-1]
    return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns if turn.get("content"))
