"""How many KV blocks sequences will hold at the most, in closed form, if each goes on to its max_tokens."""

from collections.abc import Iterable

from .sequence import Sequence


def peak_blocks(sequences: Iterable[Sequence], block_size: int) -> int:
    """An upper bound while every decode gets one token a step: what is shared counts for each, and so does a block begun.

    The most is held when one of them ends: then those with more to come are all still there, and each has grown by as much
    as that one had to come. A sequence that still waits for its first token may come late: it counts in full at all times.
    """
    held = 0
    growing: list[tuple[int, int]] = []
    for seq in sequences:
        to_come = max(0, seq.max_tokens - seq.num_output_tokens)
        if seq.num_output_tokens:
            growing.append((to_come, seq.num_tokens))
        else:
            held += -(-(seq.num_tokens + to_come) // block_size)
    growing.sort(reverse=True)
    tokens = most = 0
    for count, (to_come, num_tokens) in enumerate(growing, 1):
        tokens += num_tokens + block_size - 1
        most = max(most, tokens + count * to_come)
    return held + most // block_size
