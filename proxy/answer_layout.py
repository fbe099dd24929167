"""From a request to what its answer may consist of, and what the engine is told so that it does."""

import msgspec

from ..errors import InvalidRequestError
from ..models.thinking import Thinking
from ..models.tokenizer import Tokenizer
from ..scheduler.sampling_params import SamplingParams
from .answer import Layout
from .answer_grammar import answer_grammar
from .tools import Tools


def layout_of(prompt: str, tools: Tools | None, thinking: Thinking | None) -> Layout:
    """`prompt`: as the template has written it, up to where the answer begins."""
    return Layout(
        thinking=thinking,
        thoughts="closed" if thinking is None else thinking.at_end_of(prompt),
        calls=None if tools is None or tools.mode == "none" else tools.format,
    )


def constrained(
    params: SamplingParams, layout: Layout, tools: Tools | None, tokenizer: Tokenizer
) -> SamplingParams:
    """`params` for an answer of this layout.

    Raises InvalidRequestError where what the caller wants of the text cannot be had beside calls.
    """
    if layout.is_plain and tools is None:
        return params
    own = params.grammar
    if own is not None and tools is not None and tools.mode != "none":
        if own.field != "response_format":
            raise InvalidRequestError(
                f"tools and {own.field} are given; an output can obey one of them. "
                'Leave one out, or set tool_choice to "none".',
                param=own.field,
            )
        if tools.format.at_start and tools.mode == "auto":
            raise InvalidRequestError(
                "tools and response_format are given, and this model writes calls as JSON too: they could not be told "
                'apart. Leave one out, or set tool_choice to "none" or "required".',
                param="response_format",
            )
    grammar = answer_grammar(
        own,
        tools=tools,
        thinking=None if layout.thoughts == "closed" else layout.thinking,
        opened=layout.thoughts == "open",
        markers=tokenizer.markers,
    )
    calls = layout.calls
    return msgspec.structs.replace(
        params,
        grammar=grammar,
        shown_token_ids=tokenizer.special_ids_in(layout.literals),
        # Stop strings are for text: a call that one cuts would be of no use.
        stop=() if tools is not None and tools.mode == "required" else params.stop,
        no_stop_after=None if calls is None or not params.stop else calls.trigger,
    )
