"""Tokens into text: whole characters only, stop strings found wherever they fall, nothing lost."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.models.tokenizer import Tokenizer
from penstock.scheduler.detokenizer import REPLACEMENT, Detokenizer
from penstock.scheduler.outputs import Chunk, Delta, TokenLogprob
from penstock.scheduler.sampling_params import SamplingParams

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_llama))


def run(
    tokenizer: Tokenizer,
    token_ids: list[int],
    *,
    sizes: list[int] | None = None,
    stop: tuple[str, ...] = (),
    params: SamplingParams | None = None,
    finish: str = "length",
    stop_token_id: int | None = None,
) -> list[Chunk]:
    """Push the tokens in deltas of the given sizes (the last repeats), up to the first finished chunk."""
    detokenizer = Detokenizer(tokenizer, params or SamplingParams(stop=stop))
    chunks = []
    sizes = list(sizes or [1])
    rest = list(token_ids)
    while rest:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        piece, rest = rest[:size], rest[size:]
        last = not rest
        logprobs = [TokenLogprob(token_id, -1.0, []) for token_id in piece]
        chunks.append(
            detokenizer.push(
                Delta("r", 0, piece, logprobs, finish if last else None, stop_token_id if last else None)
            )
        )
        if chunks[-1].finish_reason is not None:
            break
    return chunks


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_a_character_leaves_when_its_last_byte_has_come(tokenizer: Tokenizer):
    token_ids = tokenizer.encode("a😀b")
    assert len(token_ids) == 6  # four bytes of one character
    assert [chunk.text for chunk in run(tokenizer, token_ids)] == ["a", "", "", "", "😀", "b"]


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer):
    token_ids = tokenizer.encode("a😀")[:-1]
    chunks = run(tokenizer, token_ids)
    assert text_of(chunks) == tokenizer.decode(token_ids) == "a" + REPLACEMENT
    assert [chunk.text for chunk in chunks[:-1]] == ["a", "", ""]


any_text = st.text(st.characters(codec="utf-8"), max_size=40)


@given(text=any_text, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8))
@example(text="\N{REPLACEMENT CHARACTER} is a character", sizes=[1])
@example(text="👩‍👩‍👧‍👦 नमस्ते", sizes=[1])
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_whole(tokenizer: Tokenizer, text: str, sizes: list[int]):
    chunks = run(tokenizer, tokenizer.encode(text, add_special_tokens=False), sizes=sizes)
    assert text_of(chunks) == text
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in chunk.text for chunk in chunks)


@given(
    token_ids=st.lists(st.integers(3, 300), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_any_tokens_read_as_when_decoded_at_once(
    tokenizer: Tokenizer, token_ids: list[int], sizes: list[int]
):
    """Random bytes: what cannot be a character is replaced, exactly as in one decoding of everything."""
    assert text_of(run(tokenizer, token_ids, sizes=sizes)) == tokenizer.decode(token_ids)


def test_a_character_after_garbage_is_whole(tokenizer: Tokenizer):
    lead = tokenizer.encode("😀")[0]
    token_ids = [lead] * 4 + tokenizer.encode("😀x")
    assert text_of(run(tokenizer, token_ids)) == tokenizer.decode(token_ids) == REPLACEMENT * 4 + "😀x"


def test_garbage_does_not_stall_the_stream(tokenizer: Tokenizer):
    token_ids = [tokenizer.encode("😀")[0]] * 100
    chunks = run(tokenizer, token_ids)
    shown = 0
    for number, chunk in enumerate(chunks, 1):
        shown += len(chunk.text)
        assert shown >= number - 4
    assert text_of(chunks) == REPLACEMENT * 100


def test_spaces_between_words_are_kept(tokenizer: Tokenizer):
    text = " the list  of files\n\tin a folder "
    assert text_of(run(tokenizer, tokenizer.encode(text))) == text


def test_a_stop_string_ends_the_text_before_it(tokenizer: Tokenizer):
    chunks = run(tokenizer, tokenizer.encode("one two three"), stop=("two",))
    assert text_of(chunks) == "one "
    assert chunks[-1].finish_reason == "stop" and chunks[-1].stop_reason == "two"


@given(
    before=st.text("abc", max_size=12),
    after=st.text("abcde", max_size=8),
    stops=st.lists(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
)
@example(before="aab", after="", stops=["aac", "ab"], sizes=[1])
@settings(max_examples=400, deadline=None)
def test_stop_strings_cut_where_a_search_of_the_whole_text_would(tokenizer, before, after, stops, sizes):
    text = before + after
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        return
    # The first stop string to be complete cuts; of several in one token's text, the leftmost.
    expected, used, reason = text, len(token_ids), None
    for count in range(1, len(token_ids) + 1):
        seen = tokenizer.decode(token_ids[:count])
        found = [(seen.find(stop), stop) for stop in stops if stop in seen]
        if found:
            at, reason = min(found)
            expected, used = seen[:at], count
            break
    chunks = run(tokenizer, token_ids, sizes=sizes, stop=tuple(stops))
    assert text_of(chunks) == expected
    assert chunks[-1].finish_reason == ("stop" if reason else "length")
    assert chunks[-1].stop_reason == reason
    # Tokens after the stop string were never asked for, however many came in one piece.
    assert sum(len(chunk.token_ids) for chunk in chunks) == used
    assert sum(len(chunk.logprobs) for chunk in chunks) == used


def test_a_possible_stop_string_is_held_back_and_released(tokenizer: Tokenizer):
    token_ids = tokenizer.encode("xyQ")
    chunks = run(tokenizer, token_ids, stop=("xyz",))
    assert [chunk.text for chunk in chunks] == ["", "", "xyQ"]
    chunks = run(tokenizer, tokenizer.encode("Qxy"), stop=("xyz",))
    assert [chunk.text for chunk in chunks] == ["Q", "", "xy"]  # released at the end


def test_a_stop_string_of_many_bytes(tokenizer: Tokenizer):
    chunks = run(tokenizer, tokenizer.encode("ja 😀 nein"), stop=("😀",))
    assert text_of(chunks) == "ja " and chunks[-1].stop_reason == "😀"


def test_a_stop_string_in_the_last_piece_wins_over_length(tokenizer: Tokenizer):
    chunks = run(tokenizer, tokenizer.encode("abc"), stop=("c",), finish="length")
    assert text_of(chunks) == "ab" and chunks[-1].finish_reason == "stop"


def test_a_stop_token_is_no_part_of_the_text(tokenizer: Tokenizer):
    x = tokenizer.encode("x")[0]
    token_ids = [*tokenizer.encode("ab"), x]
    params = SamplingParams(stop_token_ids=(x,))
    chunks = run(tokenizer, token_ids, params=params, finish="stop", stop_token_id=x)
    assert text_of(chunks) == "ab" and chunks[-1].stop_reason == x
    assert chunks[-1].token_ids == [x]  # counted, not shown


def test_the_end_token_gives_no_stop_reason(tokenizer: Tokenizer):
    chunks = run(tokenizer, [*tokenizer.encode("ab"), EOS], finish="stop", stop_token_id=EOS)
    assert text_of(chunks) == "ab" and chunks[-1].stop_reason is None


def test_an_end_without_tokens_releases_what_was_held(tokenizer: Tokenizer):
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=("xyz",)))
    emoji = tokenizer.encode("😀")
    assert detokenizer.push(Delta("r", 0, tokenizer.encode("xy"))).text == ""
    assert detokenizer.push(Delta("r", 0, emoji[:2])).text == ""
    assert detokenizer.push(Delta("r", 0, [], finish_reason="abort")).text == "xy" + REPLACEMENT


def test_special_tokens_are_shown_where_asked(tokenizer: Tokenizer):
    token_ids = [1, *tokenizer.encode("a"), 0, *tokenizer.encode("b"), 1]
    assert text_of(run(tokenizer, token_ids)) == "ab"
    shown = SamplingParams(shown_token_ids=(1,))
    assert text_of(run(tokenizer, token_ids, params=shown)) == "<s>ab<s>"


@pytest.mark.parametrize("sizes", [[1], [3], [100]])
def test_no_stop_string_is_looked_for_behind_a_text(tokenizer: Tokenizer, sizes: list[int]):
    params = SamplingParams(stop=("stop", "<cat"), no_stop_after="<call>")
    for text, expected in (
        ("go <call> stop it", "go <call> stop it"),
        ("go stop <call>", "go "),
        ("go <cat", "go "),
        ("go <ca", "go <ca"),
        ("<call><cat stop <call>", "<call><cat stop <call>"),
    ):
        chunks = run(tokenizer, tokenizer.encode(text), sizes=sizes, params=params)
        assert text_of(chunks) == expected
        assert chunks[-1].finish_reason == ("length" if expected == text else "stop")
