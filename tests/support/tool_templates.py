"""Chat templates in the styles of three families of models, short enough for tiny ones."""

from dataclasses import dataclass
from pathlib import Path

from tiny_model import write_tiny_model

_HEAD = """{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ '<|user|>[' + message.name + '] ' + message.content + '<|end|>' }}
{%- elif message.tool_calls %}{{ '<|assistant|>' }}
"""
_FOOT = """{{ '<|end|>' }}
{%- else %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
_HERMES = (
    _HEAD
    + """{{- message.content or '' }}
{%- for call in message.tool_calls %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}"""
    + _FOOT
)
_LLAMA = (
    _HEAD
    + """{%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}"""
    + _FOOT
)
_MISTRAL = (
    _HEAD
    + """{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}{{ ']' }}"""
    + _FOOT
)
# The name, then the arguments: newer models of Mistral.
_TERSE = (
    _HEAD
    + """{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}"""
    + _FOOT
)
# Thoughts of earlier answers are cut off; the generation prompt may open or close new ones.
_THINKING = _HERMES.replace(
    "message.role + '|>' + message.content", "message.role + '|>' + message.content.split('</think>')[-1]"
).replace(
    "<|assistant|>{% endif %}",
    "<|assistant|>{% if thoughts == 'open' %}<think>\n{% elif thoughts == 'closed' %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
)


@dataclass(frozen=True)
class Family:
    template: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        return write_tiny_model(
            folder, template=self.template, special=self.special, added=self.added, context=2048
        )


FAMILIES = {
    "hermes": Family(_HERMES, added=("<tool_call>", "</tool_call>")),
    "spelled": Family(_HERMES),  # its markers are plain text to the tokenizer
    "llama": Family(_LLAMA),
    "mistral": Family(_MISTRAL, special=("[TOOL_CALLS]",)),
    "terse": Family(_TERSE, special=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    "thinking": Family(_THINKING, added=("<tool_call>", "</tool_call>", "<think>", "</think>")),
}
SPELLED_THINKING = Family(_THINKING)
