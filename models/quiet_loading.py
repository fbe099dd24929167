"""Loading through transformers without its bars and tables: what of them matters is one line of ours, and an error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError


@contextmanager
def quietly() -> Iterator[None]:
    """Within it, transformers logs errors only. It prints a table of all weights that are missing, or too many."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def refuse_missing_weights(path: Path, module: Any, report: Mapping[str, Any]) -> None:
    """Raises ModelLoadError where the folder lacks weights: transformers only warns, and fills them with random numbers.

    `report`: what `from_pretrained` tells with `output_loading_info`.
    """
    missing = sorted(report["missing_keys"])
    if not missing:
        return
    kind = type(module).__name__
    lacks = f"{len(missing)} of the weights of {kind}, {missing[0]} among them"
    stored = module.config.architectures or [kind]
    if kind not in stored:
        raise ModelLoadError(
            f"{path} holds a {' or '.join(stored)}, which is no causal language model: it lacks {lacks}."
        )
    raise ModelLoadError(f"{path} lacks {lacks}; download or export it again.")
