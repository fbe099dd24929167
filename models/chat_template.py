"""A model's chat template: Jinja in a sandbox, with the globals that templates on the hub rely on.

Knows nothing of tokens. The template is untrusted code from a model repository, hence the sandbox.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidRequestError, ModelLoadError


class ChatTemplate:
    """Renders messages to the text the model was trained on.

    Args:
        source: the Jinja text.
        variables: what every rendering sees beside the messages (`bos_token`, `eos_token`, ...).

    Raises ModelLoadError when the source is no valid template.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelLoadError(f"The model's chat template is not valid Jinja: {error}.") from error
        self.source = source
        self._variables = dict(variables)

    def render(
        self, messages: list[dict[str, object]], *, add_generation_prompt: bool, **template_kwargs: Any
    ) -> str:
        """Raises InvalidRequestError with the template's own words when it refuses the messages."""
        variables = {"tools": None, "documents": None, **self._variables, **template_kwargs}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:  # a template is a program: it may fail in any way, and not by our fault
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}.", param="messages"
            ) from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks assistant text for training; when serving, it is just its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> str:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which the model has never seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
