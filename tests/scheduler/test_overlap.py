"""Steps that are scheduled before the results of the one before are known give the answers of steps one by one, bit for bit.

The device is a thread beside, which computes one step after the other and takes its time.
"""

import random
import time
from pathlib import Path

import msgspec
import pytest

from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.grammar import Grammar
from penstock.scheduler.outputs import Delta
from penstock.scheduler.sequence import UNKNOWN

Request = tuple[list[int], SamplingParams]
POOL = 24
CONFIG = {"device": "cpu", "quantize": "w8a8", "max_model_len": 256, "block_size": 16, "speculation": "off"}
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


class SlowDevice:
    """Takes up to a few milliseconds more than it needs."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        start = engine.runner._start

        def later(compute):
            delay = rng.choice([0.0, 0.0, 0.001, 0.003])

            def slowly():
                time.sleep(delay)
                return compute()

            return start(slowly)

        engine.runner._start = later


def overlapping(model: Path, seed: int = 0, **settings) -> Engine:
    engine = Engine(EngineConfig(model=str(model), overlap="on", **(CONFIG | settings)))
    SlowDevice(engine, random.Random(seed))
    return engine


def requests(vocab_size: int, rng: random.Random) -> list[Request]:
    """Most of them plain; few tokens to choose from, so that some end by themselves."""
    shared = [rng.randrange(3, vocab_size) for _ in range(50)]
    phrase = [rng.randrange(3, vocab_size) for _ in range(7)]
    made = []
    for number in range(POOL):
        prompt = [rng.randrange(3, vocab_size) for _ in range(rng.choice([1, 2, 15, 16, 17, 33, 70, 129]))]
        if number % 3 == 0:
            prompt = shared[: rng.choice([16, 33, 50])] + prompt
        if number % 4 == 0:
            prompt = phrase * 3 + prompt
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([-1, 20]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(2**64),
            max_tokens=rng.randrange(1, 70),
            stop_token_ids=tuple(rng.randrange(3, vocab_size) for _ in range(rng.choice([0, 12]))),
            logprobs=1 if number % 8 == 1 else None,
            repetition_penalty=1.2 if number % 8 == 2 else 1.0,
            ignore_eos=rng.random() < 0.5,
        )
        made.append((prompt, params))
    return made


def alone(engine: Engine, request: Request) -> list[Delta]:
    engine.add_request("alone", *request)
    deltas = []
    while engine.has_work():
        deltas += engine.step()
    return deltas


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def outcome(deltas: list[Delta]) -> tuple:
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return tokens_of(deltas), logprobs, deltas[-1].finish_reason, deltas[-1].stop_token_id


def run_schedule(engine: Engine, chosen: dict[str, Request], answers: dict, rng: random.Random) -> int:
    """One random schedule, some requests of which leave on the way; returns how many steps were left under way."""
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
        limit, rng.choice([0, 1, 3, 8])
    )
    engine.scheduler.max_num_seqs = rng.choice([2, 5, 16])
    queue = list(chosen)
    rng.shuffle(queue)
    found: dict[str, list[Delta]] = {}
    gone: set[str] = set()
    left = 0
    while queue or engine.has_work():
        for _ in range(min(len(queue), rng.choice([0, 1, 3, 8]))):
            name = queue.pop()
            answer = answers[name][0]
            at = rng.randrange(len(answer))
            draft = rng.choice([None, None, answer, answer[at:], [*answer[:at], 7, *answer[at + 1 :]]])
            engine.add_request(name, *chosen[name], draft_token_ids=draft)
        if rng.random() < 0.1:
            late = rng.choice(sorted(chosen))
            engine.suggest(late, answers[late][0])
        engine.scheduler.max_num_batched_tokens = rng.choice([16, 17, 40, 64, 300])
        if rng.random() < 0.05 and (live := [name for name in found if engine.is_live(name)]):
            name = rng.choice(sorted(live))
            gone.add(name)
            if rng.random() < 0.5:
                engine.abort(name)
            else:
                engine.finish_sequence(name, 0)
        for delta in engine.step():
            assert delta.request_id not in gone, "of a request that has left"
            assert UNKNOWN not in delta.token_ids
            found.setdefault(delta.request_id, []).append(delta)
        left += engine._under_way is not None
        engine.check()
    for name in chosen:
        if name in gone:
            whole = answers[name][0]
            assert tokens_of(found[name]) == whole[: len(tokens_of(found[name]))]
        else:
            assert outcome(found[name]) == answers[name], name
            assert [delta.finish_reason for delta in found[name][:-1]] == [None] * (len(found[name]) - 1)
    assert engine.stats.kv_blocks_used == 0
    return left


def test_forty_random_schedules(tiny_llama):
    rng = random.Random(3)
    solo = Engine(EngineConfig(model=str(tiny_llama), prefix_caching=False, **CONFIG))
    pool = requests(solo.info.vocab_size, rng)
    answers = {str(number): outcome(alone(solo, request)) for number, request in enumerate(pool)}
    assert {answer[2] for answer in answers.values()} == {"stop", "length"}
    engines = [
        overlapping(tiny_llama, kv_cache_tokens=tokens, prefix_caching=caching, speculation=speculation)
        for tokens, caching, speculation in ((272, True, "off"), (2048, True, "on"), (272, False, "on"))
    ]
    left = 0
    for _ in range(40):
        plain = [name for name in sorted(answers) if int(name) % 8 not in (1, 2)]
        names = rng.sample(rng.choice([plain, sorted(answers)]), rng.randrange(6, 16))
        left += run_schedule(rng.choice(engines), {name: pool[int(name)] for name in names}, answers, rng)
    assert left > 200
    assert any(engine.stats.prefix_hits for engine in engines)
    drafters = [engine.stats.drafters["draft"] for engine in engines]
    assert all(0 < stats.accepted < stats.drafted for stats in drafters)


def test_the_next_step_is_launched_before_the_last_one_is_waited_for(tiny_llama):
    engine = overlapping(tiny_llama)
    told: list[list[str]] = []
    engine.on_schedule = lambda scheduled: told.append([item.seq.request_id for item in scheduled])
    engine.add_request("r", [5, 6, 7], GREEDY)
    assert engine.step() == [] and engine._under_way is not None
    engine.add_request("late", [5, 6, 7], GREEDY)
    (first,) = engine.step()
    assert len(first.token_ids) == 1 and first.queue_seconds is not None
    # Whichever of both steps ends the engine, whom it computed is known.
    assert told == [["r"], ["r", "r", "late"]]
    seq = engine.scheduler.running[0]
    assert seq.token_ids[-1] == UNKNOWN and seq.num_output_tokens == 2
    engine.abort("r")
    engine.abort("late")
    assert engine.stats.kv_blocks_used == 0 and engine.has_work()
    assert engine.step() == [] and not engine.has_work()


def test_no_step_is_scheduled_for_a_token_beyond_the_last(tiny_llama):
    engine = overlapping(tiny_llama)
    deltas = alone(engine, ([5, 6, 7], GREEDY))
    assert len(tokens_of(deltas)) == 20 and engine.stats.steps == 20
    stop = tokens_of(deltas)[7]
    deltas = alone(engine, ([5, 6, 7], msgspec.structs.replace(GREEDY, stop_token_ids=(stop,))))
    # Of an end that nobody could know of, one step is computed for nothing.
    assert engine.stats.steps == 20 + len(deltas) + 1


def test_what_needs_its_tokens_gets_them_step_by_step(tiny_llama):
    engine = overlapping(tiny_llama)
    demanding = {
        "logprobs": {"logprobs": 0},
        "penalty": {"frequency_penalty": 0.5},
        "grammar": {"grammar": Grammar("regex", "[ab]{5,9}")},
    }
    for changes in demanding.values():
        engine.add_request("r", [5, 6, 7], msgspec.structs.replace(GREEDY, max_tokens=4, **changes))
        while engine.has_work():
            engine.step()
            assert engine._under_way is None


@pytest.mark.parametrize("right", [True, False])
def test_only_a_draft_that_goes_on_is_waited_for(tiny_llama, right):
    engine = overlapping(tiny_llama)
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(limit, 4)
    answer = tokens_of(alone(engine, ([5, 6, 7], GREEDY)))
    steps = engine.stats.steps
    draft = answer if right else [answer[0], *range(200, 219)]
    engine.add_request("r", [5, 6, 7], GREEDY, draft_token_ids=draft)
    tokens, left = [], 0
    while engine.has_work():
        tokens += tokens_of(engine.step())
        left += engine._under_way is not None
    assert tokens == answer
    if right:
        assert engine.stats.steps - steps <= 6 and left <= 1
    else:
        assert left >= 15


def test_several_completions_of_one_prompt_share_its_blocks(tiny_llama):
    """What is being computed is found as what has been is."""
    prompt = [number % 300 + 3 for number in range(100)]
    params = msgspec.structs.replace(GREEDY, n=4, temperature=1.0, seed=3)
    engine, plain = overlapping(tiny_llama), overlapping(tiny_llama)
    plain._overlaps = False
    found = []
    for each in (engine, plain):
        each.add_request("r", prompt, params)
        tokens: dict[int, list[int]] = {}
        while each.has_work():
            for delta in each.step():
                tokens.setdefault(delta.index, []).extend(delta.token_ids)
        found.append((tokens, each.stats.prompt_tokens))
    assert found[0] == found[1] and found[0][1] < 2 * len(prompt)


def test_a_whole_answer_is_found_by_the_next_turn(tiny_llama):
    engine, plain = overlapping(tiny_llama), overlapping(tiny_llama)
    plain._overlaps = False
    for each in (engine, plain):
        answer = tokens_of(alone(each, ([5, 6, 7], msgspec.structs.replace(GREEDY, max_tokens=60))))
        deltas = alone(each, ([5, 6, 7, *answer, 9], GREEDY))
        assert deltas[0].num_cached_tokens == 48


def test_a_broken_model_ends_only_with_errors(tiny_llama):
    engine = overlapping(tiny_llama)
    forward = engine.runner._forward.logits
    calls = iter([False, False, True])
    engine.runner._forward.logits = lambda *args: (
        forward(*args) * (float("nan") if next(calls, False) else 1.0)
    )
    engine.add_request("r", [5, 6, 7], GREEDY)
    deltas = []
    while engine.has_work():
        deltas += engine.step()
    assert deltas[-1].finish_reason == "error" and len(tokens_of(deltas)) == 2
    engine.check()
    assert outcome(alone(engine, ([5, 6, 7], GREEDY)))[2] == "length"


def test_what_fails_under_way_is_raised(tiny_llama):
    engine = overlapping(tiny_llama)

    def fail(*args):
        raise RuntimeError("the device is gone")

    engine.add_request("r", [5, 6, 7], GREEDY)
    engine.step()
    engine.runner._forward.logits = fail
    with pytest.raises(RuntimeError, match="the device is gone"):
        for _ in range(3):
            engine.step()


@pytest.mark.parametrize("caching", [True, False])
def test_what_is_preempted_under_way_loses_a_token_and_gets_it_again(tiny_llama, caching):
    engine = overlapping(tiny_llama, kv_cache_tokens=256, prefix_caching=caching)
    requests = {str(n): ([5 + n] * 20, msgspec.structs.replace(GREEDY, max_tokens=90)) for n in range(6)}
    answers = {name: tokens_of(alone(engine, request)) for name, request in requests.items()}
    ahead = 0
    preempt = engine.scheduler._preempt

    def counted(seq):
        nonlocal ahead
        ahead += seq.is_ahead
        preempt(seq)
        assert UNKNOWN not in seq.token_ids

    engine.scheduler._preempt = counted
    for name, request in requests.items():
        engine.add_request(name, *request)
    found: dict[str, list[int]] = {name: [] for name in requests}
    while engine.has_work():
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
        engine.check()
    assert found == answers and ahead > 3
    assert engine.stats.kv_blocks_used == 0


def test_nobody_is_preempted_where_max_tokens_is_trusted(tiny_llama):
    """Blocks are given back a step later; but the last token of each, for which nothing is ever stored, was counted too."""
    engine = overlapping(tiny_llama, kv_cache_tokens=256, trust_max_tokens=True, prefix_caching=False)
    rng = random.Random(1)
    for number in range(40):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 60))]
        params = msgspec.structs.replace(GREEDY, max_tokens=rng.randrange(1, 90))
        engine.add_request(str(number), prompt, params)
    while engine.has_work():
        engine.step()
    assert engine.stats.preemptions == 0


def test_generate_after_an_interrupted_one(tiny_llama):
    engine = overlapping(tiny_llama)
    engine.add_request("r", [5, 6, 7], GREEDY)
    engine.step()
    engine.abort("r")
    (result,) = engine.generate([[5, 6, 7]], GREEDY, progress=False)
    assert len(result.completions[0].token_ids) == 20
