"""What a chat template shows of how calls are written, and what it does not."""

from pathlib import Path

import pytest
from tool_templates import FAMILIES

from penstock.models.chat_template import ChatTemplate
from penstock.models.thinking import Thinking
from penstock.models.tokenizer import Tokenizer
from penstock.models.tool_format import CALL_ID, ToolFormat, mentions_tools, probed_format

CALLS = "{% for call in message.tool_calls %}{% set f = call.function %}"


def probed(call: str, *, end: str = "<|end|>", separator: str = "", markers: tuple[str, ...] = ("<|end|>",)):
    """Of a template that writes a call in this way."""
    template = ChatTemplate(
        "{% for message in messages %}{% if message.tool_calls %}" + CALLS + call
        + "{% if not loop.last %}" + separator + "{% endif %}{% endfor %}" + end
        + "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}",
        {},
    )  # fmt: skip
    return probed_format(
        lambda messages, tools: template.render(messages, add_generation_prompt=False, tools=tools),
        markers,
        "</s>",
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path: Path, name: str):
    form = Tokenizer.load(str(FAMILIES[name].write(tmp_path / name))).tool_format
    assert isinstance(form, ToolFormat)
    assert not form.arguments_as_text and form.separators == (", ", ": ")
    assert form.at_start == (name == "llama") and (form.next is None) == (name == "llama")
    shown = {
        "hermes": ("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", ""),
        "llama": ('{"name": "', "", '", "parameters": ', "}", ""),
        "mistral": ("[TOOL_CALLS]", ' [{"name": "', '", "arguments": ', f', "id": "{CALL_ID}"}}', "]"),
        "terse": ("[TOOL_CALLS]", "", f"[CALL_ID]{CALL_ID}[ARGS]", "", ""),
    }
    expected = shown.get(name, shown["hermes"])
    assert (form.trigger, form.opening, form.between, form.closing, form.ending) == expected


def test_arguments_as_text_and_other_white_space():
    text = probed("<call>{{ f.name + ' ' + f.arguments }}</call>")
    assert isinstance(text, ToolFormat) and text.arguments_as_text
    narrow = probed("<call>{{ f.name }} {{ f.arguments | tojson(separators=(',', ':')) }}</call>")
    assert isinstance(narrow, ToolFormat) and narrow.separators == (",", ":")
    wide = probed("<call>{{ f.name }} {{ f.arguments | tojson(indent=2) }}</call>")
    assert isinstance(wide, ToolFormat) and wide.separators is None
    assert (wide.trigger, wide.opening, wide.closing) == ("<call>", "", "</call>")


def test_tokens_are_never_cut():
    """Two markers that begin alike are told apart as wholes."""
    form = probed(
        "<|call|>{{ f.name }}<|args|>{{ f.arguments | tojson }}",
        separator="<|more|>",
        end="<|done|><|end|>",
        markers=("<|end|>", "<|call|>", "<|args|>", "<|more|>", "<|done|>"),
    )
    assert isinstance(form, ToolFormat)
    assert (form.trigger, form.closing, form.next, form.ending) == (
        "<|call|>",
        "",
        "<|more|><|call|>",
        "<|done|>",
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("<f={{ f.name }}>{% for k, v in f.arguments.items() %}<p={{ k }}>{{ v }}</p>{% endfor %}</f>", "as a JSON object"),
        ("{{ f.arguments | tojson }} for {{ f.name }}", "as a JSON object"),
        ("{{ {'arguments': f.arguments | tojson, 'name': f.name} | tojson }}", "as a JSON object"),
        ("<call>{{ f.arguments | tojson }}", "names of called functions"),
        ("{{ raise_exception('no calls here') }}", "no calls here"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(call: str, said: str):
    reason = probed(call)
    assert isinstance(reason, str) and said in reason


@pytest.mark.parametrize(
    "written",
    [
        "{{ message.content }}",
        "{{ message.content.strip() }}",
        "{{ '' if loop.last else message.content + '' }}",
    ],
)
def test_no_text_is_what_the_template_can_write(written: str):
    """None is what clients send; but it must not be read by the model, nor break the turns that follow."""
    template = ChatTemplate(
        "{% for message in messages %}{% if message.tool_calls %}" + written + CALLS
        + "<call>{{ f.name }} {{ f.arguments | tojson }}{% endfor %}<|end|>"
        "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}", {}
    )  # fmt: skip
    form = probed_format(
        lambda messages, tools: template.render(messages, add_generation_prompt=False, tools=tools),
        ["<|end|>"],
        None,
    )
    assert isinstance(form, ToolFormat) and form.empty_content == "" and form.trigger == "<call>"


def test_an_end_of_its_own_is_refused():
    reason = probed(
        "<call>{{ f.name }} {{ f.arguments | tojson }}", end="<|eom|>", markers=("<|end|>", "<|eom|>")
    )
    assert isinstance(reason, str) and "<|eom|>" in reason


def test_a_template_without_tools():
    assert not mentions_tools("{{ messages[0].content }}") and not mentions_tools("{{ toolset }}")
    assert mentions_tools("{% if tools %}")


@pytest.mark.parametrize(
    ("prompt", "thoughts"),
    [("<|assistant|>", "free"), ("<|assistant|><think>\n", "open"), ("a<think>\n\n</think>\n\n", "closed"),
     ("what is <think>?<|assistant|>", "free")],
)  # fmt: skip
def test_where_an_answer_begins(prompt: str, thoughts: str):
    thinking = Thinking.of("{{ content.split('</think>')[-1] }}")
    assert thinking == Thinking("<think>", "</think>") and thinking.at_end_of(prompt) == thoughts
    assert Thinking.of("{{ messages }}") is None


def test_a_template_for_tools_alone(tmp_path: Path):
    """Some folders have one template for plain chats and another for tools."""
    folder = FAMILIES["hermes"].write(tmp_path / "two")
    file = folder / "additional_chat_templates" / "tool_use.jinja"
    file.parent.mkdir()
    file.write_text("{% if tools %}T{% endif %}" + FAMILIES["llama"].template)
    tokenizer = Tokenizer.load(str(folder))
    ask: list[dict[str, object]] = [{"role": "user", "content": "hi"}]
    assert isinstance(tokenizer.tool_format, ToolFormat) and tokenizer.tool_format.at_start
    assert tokenizer.render_chat(ask, tools=[{"a": 1}]).startswith("T<|system|>")
    assert tokenizer.render_chat(ask).startswith("<|user|>")
