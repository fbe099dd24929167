"""What a model wrote, taken apart: the same parts however the text is cut, and the texts that its grammar takes."""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_templates import FAMILIES, SPELLED_THINKING

from penstock.models.thinking import Thinking
from penstock.models.tokenizer import Tokenizer
from penstock.models.tool_format import CALL_ID, ToolFormat
from penstock.proxy.answer import AnswerReader, Layout, message_of
from penstock.proxy.answer_grammar import answer_grammar
from penstock.proxy.compat import FieldPolicy
from penstock.proxy.openai_types import ChatRequest
from penstock.proxy.tools import Tools
from penstock.scheduler.grammar import Grammar
from penstock.scheduler.matcher import GrammarCompiler, Matcher

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "weather_now", "parameters": CITY}},
]
CALLS = [("weather_now", {"city": 'a "quoted\\" }]{ ü', "days": 3}), ("weather", {"city": ""})]
THINK = Thinking("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("families")
    return {name: Tokenizer.load(str(family.write(root / name))) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def folders(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {name: family.write(root / name) for name, family in FAMILIES.items()}


def format_of(tokenizer: Tokenizer) -> ToolFormat:
    form = tokenizer.tool_format
    assert isinstance(form, ToolFormat), form
    return form


def written(form: ToolFormat, calls: list[tuple[str, dict[str, object]]]) -> str:
    """The calls as the template writes them."""
    text = form.trigger + form.opening
    for place, (name, arguments) in enumerate(calls):
        text += (form.next or "") if place else ""
        text += name + form.between + json.dumps(arguments, ensure_ascii=False) + form.closing
    return (text + form.ending).replace(CALL_ID, "aB3dE6gH9")


def parts(layout: Layout, text: str, cuts: list[int]) -> tuple[dict[str, object], str | None]:
    reader = AnswerReader(layout)
    found = []
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        found += reader.read(text[start:stop])
    found += reader.end()
    message = message_of(found)
    for call in message.get("tool_calls", []):
        assert len(call.pop("id")) == 9
    return message, reader.reason("stop")


def called(calls: list[tuple[str, dict[str, object]]]) -> list[dict[str, object]]:
    return [
        {
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }
        for name, arguments in calls
    ]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("before", ["", "Let me see.\n\n"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12), count=st.integers(1, 2))
def test_calls_are_found_however_the_text_is_cut(tokenizers, name, before, cuts, count):
    form = format_of(tokenizers[name])
    calls = CALLS[: count if form.next is not None else 1]
    layout = Layout(calls=form)
    if form.at_start and before:
        message, reason = parts(layout, before + written(form, calls), cuts)
        assert (message["content"], reason) == (before + written(form, calls), "stop")
        assert "tool_calls" not in message
        return
    message, reason = parts(layout, before + written(form, calls), cuts)
    assert message["content"] == (before.rstrip() or None)
    assert message["tool_calls"] == called(calls)
    assert reason == "tool_calls"


@pytest.mark.parametrize(
    ("thoughts", "text", "reasoning", "content"),
    [
        ("free", "<think>\nhm, <b>\n</think>\n\nHello </think> you\n", "hm, <b>", "Hello </think> you\n"),
        ("free", " \n<think>hm</think>", "hm", None),
        ("free", "  no thoughts, <think> is text\n", None, "  no thoughts, <think> is text\n"),
        ("free", "<thin", None, "<thin"),
        ("free", "", None, ""),
        ("open", "\nhm\n\nhm\n</think>\n\nyes", "hm\n\nhm", "yes"),
        ("open", "hm </thin", "hm </thin", None),
        ("open", "</think>yes", None, "yes"),
        ("closed", "<think>hm</think>yes", None, "<think>hm</think>yes"),
    ],
)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_thoughts_and_text(thoughts, text, reasoning, content, cuts):
    message, reason = parts(Layout(thinking=THINK, thoughts=thoughts), text, cuts)
    assert message.get("reasoning_content") == reasoning
    assert (message["content"], reason) == (content, "stop")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_thoughts_text_and_calls(tokenizers, cuts):
    form = format_of(tokenizers["thinking"])
    text = "a <tool_call> is none in thoughts\n</think>\n\nSo: \n" + written(form, CALLS)
    message, reason = parts(Layout(THINK, "open", form), text, cuts)
    assert message["reasoning_content"] == "a <tool_call> is none in thoughts"
    assert (message["content"], reason) == ("So:", "tool_calls")
    assert message["tool_calls"] == called(CALLS)


def test_a_cut_call_is_none_that_may_be_made(tokenizers):
    form = format_of(tokenizers["hermes"])
    whole = written(form, CALLS)
    for length in range(len(whole)):
        message, reason = parts(Layout(calls=form), whole[:length], [])
        calls = message.get("tool_calls", [])
        full = [call for call in calls if _is_json(call["function"]["arguments"])]
        assert calls[: len(full)] == called(CALLS)[: len(full)]
        assert (reason == "tool_calls") == (len(full) == len(calls) > 0)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


class Taker:
    """Feeds texts to the grammar of an answer."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(folder, tokenizer.vocab_size, [256])

    def matcher(self, *, own: Grammar | None = None, opened: bool | None = None, **asked: object) -> Matcher:
        request = ChatRequest(model="m", messages=[], tools=TOOLS, **asked)
        tools = Tools.of(request, self.tokenizer, FieldPolicy("refuse"))
        grammar = answer_grammar(
            own,
            tools=tools,
            thinking=None if opened is None else self.tokenizer.thinking,
            opened=bool(opened),
            markers=self.tokenizer.markers,
        )
        assert grammar is not None
        return self.compiler.compile(grammar).result(10)

    def takes(self, text: str, **asked: object) -> bool:
        """As a whole answer, whether its markers are written as tokens or spelled in the shortest way."""
        matcher = self.matcher(**asked)
        token_ids = [*self.tokenizer.encode(text, add_special_tokens=False), 256]
        return matcher.num_valid(token_ids[:-1]) == len(token_ids) - 1 and bool(
            matcher.advance(token_ids[:-1]) or matcher.is_complete or matcher.masks([])[0][256]
        )


@pytest.fixture(scope="module")
def takers(tokenizers, folders) -> dict[str, Taker]:
    return {name: Taker(tokenizers[name], folders[name]) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_grammar_takes(takers, name):
    taker = takers[name]
    form = format_of(taker.tokenizer)
    one, two = written(form, CALLS[:1]), written(form, CALLS)
    text = "Hello, a <b> \n {\"name\": 'x'}"
    wrong = one.replace('"days": 3', '"days": "x"')
    assert wrong != one
    assert taker.takes(text) and taker.takes("") and taker.takes(one)
    assert taker.takes(text + one)
    assert taker.takes(two) == (form.next is not None)
    assert not taker.takes(two, parallel_tool_calls=False) and taker.takes(one, parallel_tool_calls=False)
    assert not taker.takes(wrong)
    assert not taker.takes(one + "and more text")
    assert not taker.takes(one[:-3])
    assert taker.takes(one, tool_choice="required") and not taker.takes(text, tool_choice="required")
    assert not taker.takes("", tool_choice="required")
    assert not taker.takes(one, tool_choice="none") and taker.takes(text, tool_choice="none")
    named = {"type": "function", "function": {"name": "weather"}}
    assert not taker.takes(one, tool_choice=named)
    assert taker.takes(written(form, CALLS[1:]), tool_choice=named)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama"])
def test_text_or_calls_where_text_must_be_json(takers, name):
    taker, own = takers[name], Grammar.of_json_schema({"const": {"a": 1}})
    one = written(format_of(taker.tokenizer), CALLS[:1])
    assert taker.takes('{"a": 1}', own=own) and taker.takes(one, own=own)
    assert not taker.takes('{"a": 2}', own=own) and not taker.takes("text", own=own)
    assert taker.takes('{"a": 1}', own=own, tool_choice="none")
    assert not taker.takes(one, own=own, tool_choice="none")


@pytest.mark.parametrize("markers", ["tokens", "text"])
def test_thoughts_come_first(takers, markers, tmp_path):
    taker = takers["thinking"]
    if markers == "text":
        folder = SPELLED_THINKING.write(tmp_path / "spelled")
        taker = Taker(Tokenizer.load(str(folder)), folder)
    one = written(format_of(taker.tokenizer), CALLS[:1])
    own = Grammar("regex", "[ab]{2}")
    for tail, asked in ((one, {"tool_choice": "required"}), (one, {}), ("text", {}), ("ab", {"own": own})):
        assert taker.takes(f"<think>\nhm\n</think>\n\n{tail}", opened=False, **asked)
        assert taker.takes(f"hm, {{}}\n</think>\n{tail}", opened=True, **asked)
        assert taker.takes(tail, opened=False, **asked)
        assert not taker.takes(tail, opened=True, **asked)
    assert not taker.takes("hm</think>hm", opened=True, own=own)


def test_a_marker_is_no_text_even_when_it_is_spelled(takers):
    taker = takers["hermes"]
    spelled = [taker.tokenizer.encode(char)[0] for char in "so <tool_call"]
    matcher = taker.matcher()
    assert matcher.num_valid(spelled) == len(spelled)
    assert matcher.num_valid([*spelled, taker.tokenizer.encode(">")[0]]) == len(spelled)


def test_grammar_matches_reader_on_random_walks(takers):
    """Whatever the grammar lets a random writer write, the reader finds whole calls in, when it has ended."""
    random.seed(5)
    ended = 0
    for name in FAMILIES:
        taker = takers[name]
        form = format_of(taker.tokenizer)
        for _ in range(6):
            matcher = taker.matcher(tool_choice="required")
            tokens: list[int] = []
            while not matcher.is_complete and len(tokens) < 600:
                allowed = matcher.masks([])[0].nonzero().flatten().tolist()
                if 256 in allowed and random.random() < 0.7:
                    break
                quote = taker.tokenizer.encode('"')[0]
                token = quote if quote in allowed and random.random() < 0.3 else random.choice(allowed)
                matcher.advance([token])
                tokens.append(token)
            shown = frozenset(taker.tokenizer.special_ids_in(form.literals))
            message, reason = parts(Layout(calls=form), taker.tokenizer.decode(tokens, shown=shown), [])
            if len(tokens) < 600:
                ended += 1
                assert reason == "tool_calls"
                for call in message["tool_calls"]:
                    assert call["function"]["name"] in ("weather", "weather_now")
                    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert ended >= 20
