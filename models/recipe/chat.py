"""The conversation format of the built-in model: its special tokens and its chat template.

A turn is its role token, the text and `<|end|>`, with nothing between turns; an answer's `<|end|>` is EOS.
"""

from dataclasses import dataclass

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)  # ids 0..4, in this order

TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("role '" + message['role'] + "' is unknown here; use system, user or assistant") -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training example: the turns in order, and the system text, empty for none."""

    pairs: tuple[Pair, ...]
    system: str = ""

    def segments(self) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether the model learns to write it (answers with their END)."""
        parts = [(SYSTEM + self.system + END, False)] if self.system else []
        for pair in self.pairs:
            parts.append((USER + pair.question + END + ASSISTANT, False))
            parts.append((pair.answer + END, True))
        return parts
