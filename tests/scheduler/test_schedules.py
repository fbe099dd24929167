"""The same answer under any load, as a property: whatever the schedule, tokens and log-probabilities are those of the
request alone, bit for bit. 60 random schedules here, 600 with `pytest -m slow tests/scheduler/test_schedules.py`."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from penstock.scheduler import Engine, EngineConfig, SamplingParams
from penstock.scheduler.draft_length import LENGTHS
from penstock.scheduler.outputs import TokenLogprob

Answer = tuple[list[int], list[TokenLogprob], str | None]
Request = tuple[list[int], SamplingParams]
POOL = 24


def requests(vocab_size: int, rng: random.Random) -> list[Request]:
    """Short and long, greedy and sampled, penalized, with common beginnings and with repetitions that n-grams find."""
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
            temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
            top_k=rng.choice([-1, 20]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            presence_penalty=rng.choice([0.0, 0.5]),
            seed=rng.randrange(2**64),
            max_tokens=rng.randrange(1, 30),
            # Few tokens to choose from make answers that repeat themselves.
            logit_bias=dict.fromkeys(phrase[:3], 30.0) if number % 4 == 1 else None,
            logprobs=rng.choice([0, 2]),
            ignore_eos=rng.random() < 0.7,
            drafters=rng.choice([None, None, ("ngram",), ()]),
        )
        made.append((prompt, params))
    return made


def draft_of(answer: list[int], vocab_size: int, rng: random.Random) -> list[int] | None:
    """Right, half right, or useless."""
    kind = rng.choice(["none", "right", "cut", "changed", "shifted", "useless"])
    if kind == "none" or not answer:
        return None
    at = rng.randrange(len(answer))
    return {
        "right": answer,
        "cut": answer[:at],
        "changed": [*answer[:at], rng.randrange(3, vocab_size), *answer[at + 1 :]],
        "shifted": answer[at:],
        "useless": [rng.randrange(3, vocab_size) for _ in range(20)],
    }[kind]


def run_schedule(
    engine: Engine, chosen: dict[str, Request], answers: dict[str, Answer], rng: random.Random
) -> None:
    """One random schedule: arrivals, budgets and draft lengths change from step to step, drafts come late, some leave."""
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
        limit, rng.choice([0, 0, 1, 2, *LENGTHS])
    )
    planner = engine.speculator.planner
    if planner is not None:
        planner.pays_to_catch_up = lambda candidate, num_seqs: rng.random() < 0.7
        planner.choose_lengths = lambda times, run_times, chances, tokens, seqs: [
            min(chance.limit, rng.choice([0, 0, 1, 2, 3, 8])) for chance in chances
        ]
    engine.scheduler.max_num_seqs = rng.choice([2, 5, 16])
    queue = list(chosen)
    rng.shuffle(queue)
    found: dict[str, Answer] = {}
    aborted: set[str] = set()
    while queue or engine.has_work():
        for _ in range(min(len(queue), rng.choice([0, 1, 3, 8]))):
            name = queue.pop()
            prompt, params = chosen[name]
            draft = draft_of(answers[name][0], engine.info.vocab_size, rng)
            engine.add_request(name, prompt, params, draft_token_ids=draft)
        if rng.random() < 0.2:
            late = rng.choice(sorted(chosen))  # waiting, running, preempted, not there yet or no longer
            draft = draft_of(answers[late][0], engine.info.vocab_size, rng)
            if draft is not None:
                engine.suggest(late, draft)
        engine.scheduler.max_num_batched_tokens = rng.choice([16, 17, 40, 64, 300])
        if planner is not None:  # it is asked though it does not pay
            planner.rests, planner._credit = rng.choice([0, 0, 0, 2]), 1.0
        if rng.random() < 0.02 and found:
            gone = rng.choice(sorted(found))
            engine.abort(gone)
            aborted.add(gone)
        for delta in engine.step():
            tokens, logprobs, _ = found.get(delta.request_id, ([], [], None))
            found[delta.request_id] = (
                tokens + delta.token_ids,
                logprobs + (delta.logprobs or []),
                delta.finish_reason,
            )
        engine.check()
    for name in chosen:
        if name in aborted:
            tokens, logprobs, _ = found[name]
            assert tokens == answers[name][0][: len(tokens)]
            assert logprobs == answers[name][1][: len(tokens)]
        else:
            assert found[name] == answers[name], name
    assert engine.stats.kv_blocks_used == 0


def alone(engine: Engine, request: Request) -> Answer:
    prompt, params = request
    engine.add_request("alone", prompt, msgspec.structs.replace(params, drafters=()))
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    reason = None
    while engine.has_work():
        for delta in engine.step():
            tokens += delta.token_ids
            logprobs += delta.logprobs or []
            reason = delta.finish_reason
    return tokens, logprobs, reason


def random_clock(rng: random.Random) -> Callable[[], float]:
    """What steps have taken decides about the next ones: with this, one seed is the same schedules on every machine."""
    now = itertools.accumulate(iter(lambda: rng.expovariate(1000), None))
    return lambda: next(now)


def check_schedules(model: Path, other: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    config = {"model": str(model), "quantize": "w8a8", "max_model_len": 256, "block_size": 16}
    solo = Engine(EngineConfig(**config, prefix_caching=False, speculation="off"))
    pool = requests(solo.info.vocab_size, rng)
    answers = {str(number): alone(solo, request) for number, request in enumerate(pool)}
    engines = [
        Engine(EngineConfig(**config, kv_cache_tokens=tokens, prefix_caching=caching, speculation="on"))
        for tokens, caching in ((336, True), (2048, True), (400, False))
    ]
    # One model guesses for itself, and so is always right; one hardly ever is.
    itself, stranger = (
        Engine(EngineConfig(**config, kv_cache_tokens=tokens, draft_model=str(draft)))
        for draft, tokens in ((model, 336), (other, 700))
    )
    engines += [itself, stranger]
    for engine in engines:
        engine.clock = random_clock(random.Random(seed))
    # By itself it guesses as much as the clock says pays, which may be next to nothing.
    plans, lengths = itself.speculator.planner, random.Random(seed)
    assert plans is not None
    plans.pays_to_catch_up = lambda candidate, num_seqs: True
    plans.choose_lengths = lambda times, run_times, chances, tokens, seqs: [
        lengths.randint(1, min(6, chance.limit)) for chance in chances
    ]
    for _ in range(count):
        names = rng.sample(sorted(answers), rng.randrange(2, 12))
        run_schedule(rng.choice(engines), {name: pool[int(name)] for name in names}, answers, rng)
    assert any(engine.stats.preemptions for engine in engines)
    assert any(engine.stats.prefix_hits for engine in engines)
    for drafter in ("draft", "ngram"):
        stats = [engine.stats.drafters[drafter] for engine in engines if drafter in engine.stats.drafters]
        drafted, accepted = sum(each.drafted for each in stats), sum(each.accepted for each in stats)
        assert 0 < accepted < drafted, f"{drafter}: {accepted} of {drafted}"

    figures = itself.stats.drafters["draft_model"]
    assert figures.accepted == figures.drafted > min(count // 2, 50)
    figures = stranger.stats.drafters["draft_model"]
    assert figures.accepted < 0.5 * figures.drafted


def test_sixty_random_schedules(tiny_llama, other_llama):
    check_schedules(tiny_llama, other_llama, 60, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_six_hundred_random_schedules(tiny_llama, other_llama):
    check_schedules(tiny_llama, other_llama, 600, seed=2)
