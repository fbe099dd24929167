"""A report of `prompt_eval` as JSON and as tables in Markdown."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from .prompt_eval import PromptReport

NAME = "sparse-prompts"


def as_dict(report: PromptReport) -> dict[str, Any]:
    """Plain values for JSON; lengths become strings."""
    plain = dataclasses.asdict(report)
    for answer in plain["answers"]:
        for key in ("seconds", "kept"):
            answer[key] = {str(length): value for length, value in answer[key].items()}
    return plain


def tables(report: PromptReport) -> Iterator[str]:
    """Markdown, line by line."""
    yield f"{report.model}, {report.context} tokens of context; {report.machine}"
    yield ""
    yield (
        "Attention of a whole prompt in all layers (sparse as a share of dense; keys kept by the blocks that choose, from "
        f"{report.min_context} tokens on):"
    )
    yield ""
    dense, *sparse = report.answers
    yield "| prompt | dense s | " + " | ".join(f"mass {answer.mass}" for answer in sparse) + " |"
    yield "|---|---|" + "---|" * len(sparse)
    for length, seconds in dense.seconds.items():
        cells = (f"{one.seconds[length] / seconds:.2f}x, {one.kept[length]:.1%}" for one in sparse)
        yield f"| {length} | {seconds:.2f} | " + " | ".join(cells) + " |"
    yield ""
    yield (
        f"What the last chunk's rows keep, perplexity of the last {report.decoded} tokens as the prompt predicts them, and "
        "facts found by a question at the prompt's end:"
    )
    yield ""
    yield (
        "| mass asked | true mass, mean | true mass, least | output error | perplexity | against dense "
        f"| needles found of {report.needles} |"
    )
    yield "|---|---|---|---|---|---|---|"
    for answer in report.answers:
        change = answer.perplexity / dense.perplexity - 1
        yield (
            f"| {'dense' if answer.mass is None else answer.mass} | {answer.true_mass:.3f} | {answer.least_mass:.3f} "
            f"| {answer.output_error:.3f} | {answer.perplexity:.4f} | {change:+.2%} | {answer.needles_found} |"
        )
