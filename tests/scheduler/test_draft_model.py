"""A smaller model guesses: right as often as it agrees with its target, as long as it pays, and never anything but time."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from penstock import Engine, EngineConfig, InvalidRequestError, SamplingParams
from penstock.errors import ConfigError, ModelLoadError
from penstock.scheduler.draft_length import LENGTHS, Chance, draft_lengths
from penstock.scheduler.draft_plan import (
    FIRST_CREDIT,
    REST_STEPS,
    RETHINK_TOKENS,
    TRIAL_SHARE,
    Candidate,
    DraftPlanner,
    DraftRows,
)
from penstock.scheduler.grammar import Grammar
from penstock.scheduler.sequence import Sequence
from penstock.scheduler.speculation import ModelGuesser
from penstock.scheduler.step_times import StepTimes
from penstock.scheduler.track_record import TrackRecord

GPU = "cuda" if torch.cuda.is_available() else "interpreter"
PROMPTS = [[(5 * i + j) % 300 + 5 for i in range(length)] for j, length in enumerate((3, 60, 33))]


def times_of(seconds_of_one: float, seconds_of_row: float) -> StepTimes:
    times = StepTimes()
    for size in (1, 2, 4, 8, 16, 64, 256):
        times.record(size, seconds_of_one + (size - 1) * seconds_of_row)
    return times


# A target bound by memory, and models that guess for it at a tenth of its time, or at all of it.
TARGET, CHEAP, DEAR = times_of(0.010, 1e-5), times_of(0.001, 1e-6), times_of(0.010, 1e-5)


def test_all_sequences_together_pay_for_what_one_alone_would_not():
    dear = times_of(0.004, 1e-6)
    one = Chance(0.8, 100)
    assert draft_lengths(TARGET, CHEAP, [one], 1, 1)[0] >= 4
    assert draft_lengths(TARGET, dear, [one], 8, 8) == [0]
    together = draft_lengths(TARGET, dear, [one] * 8, 8, 8)
    assert len(set(together)) == 1 and together[0] >= 1


def test_a_guess_that_costs_as_much_as_the_token_is_not_made():
    assert draft_lengths(TARGET, DEAR, [Chance(0.99, 100)] * 3, 3, 3) == [0, 0, 0]


def test_each_is_guessed_for_as_far_as_it_is_known():
    often, seldom, limited = Chance(0.95, 100), Chance(0.05, 100), Chance(0.95, 2)
    lengths = draft_lengths(TARGET, CHEAP, [often, seldom, limited], 3, 3)
    assert lengths[0] > 4 and lengths[1] <= 1 and lengths[2] == 2
    # A free draft that is about as good is kept.
    assert draft_lengths(TARGET, CHEAP, [Chance(0.8, 4, otherwise=2.3)], 1, 1) == [0]


def candidate(behind: int, *, due: bool = True, left: int = 100, right: float = 0.0) -> Candidate:
    seq = Sequence("a", 0, [1] * (behind + 5), SamplingParams(), max_tokens=left, seed=0)
    guesser = ModelGuesser(TrackRecord(right * 50, 50.0 if right else 0.0))
    return Candidate(seq, 5, behind + 5, left - 1 if due else 0, 0.0, guesser, left)


def planner(runs: StepTimes) -> DraftPlanner:
    return DraftPlanner(TARGET, runs, max_model_len=4096, max_rows=256)


def planned(rows: list[DraftRows]) -> list[tuple[int, bool]]:
    return [(each.stop - each.start, each.num_planned > 0) for each in rows]


def test_catching_up_is_bounded_and_worth_it_for_what_goes_on():
    cheap = times_of(0.001, 1e-4)  # 256 tokens in 26 ms, a step in 10
    ((taken, guesses),) = planned(planner(cheap).plan([candidate(600)], num_tokens=1, num_seqs=1))
    assert not guesses
    assert 16 <= taken < 45  # half a step's time
    assert planned(planner(cheap).plan([candidate(10)], num_tokens=1, num_seqs=1)) == [(10, True)]
    # For the last tokens of an answer a long prompt is not computed again, nor where answers are short.
    short = planner(cheap)
    short._credit = 0.5
    assert short.plan([candidate(600, left=3)], num_tokens=1, num_seqs=1) == []
    assert short.plan([candidate(600)], num_tokens=1, num_seqs=1)
    for _ in range(200):
        short.ended(3)
    assert short.plan([candidate(600)], num_tokens=1, num_seqs=1) == []
    # While its prompt is computed a sequence is followed, but not guessed for.
    ((taken, guesses),) = planned(planner(cheap).plan([candidate(30, due=False)], num_tokens=30, num_seqs=0))
    assert taken == 30 and not guesses


def steps_of(plans: DraftPlanner, count: int, num_right: Callable[[int], int]) -> float:
    """So many steps of one sequence that the draft model follows, each as long as it is said to be; what these took in all.

    `num_right`: of so many guesses.
    """
    step, run = TARGET.seconds(1), CHEAP.seconds(1)
    assert step and run
    spent = 0.0
    for _ in range(count):
        guessed = sum(rows.num_planned for rows in plans.plan([candidate(1)], num_tokens=1, num_seqs=1))
        seconds = (TARGET.seconds(1 + guessed) or 0.0) + guessed * run
        if guessed:
            plans.learn(guessed, num_right(guessed), num_right(guessed))
        plans.settle(seconds)
        spent += seconds / step - 1
    return spent


def test_a_model_that_is_never_right_is_left_alone_but_for_trials():
    plans = planner(CHEAP)
    begun = steps_of(plans, 60, lambda guessed: 0)
    assert begun > 1
    lost = steps_of(plans, 10_000, lambda guessed: 0)
    assert 0 < lost <= FIRST_CREDIT + 10_060 * TRIAL_SHARE
    # It has become better: trials tell, and it is asked in every step again.
    steps_of(plans, 3000, lambda guessed: guessed)
    assert plans.plan([candidate(1)], num_tokens=1, num_seqs=1)[0].num_planned > 4


def test_where_estimates_are_wrong_no_more_is_lost_than_was_set_apart():
    """Guesses are right, and runs take the time of ten steps: which was never measured."""
    plans = planner(CHEAP)
    step = TARGET.seconds(1)
    assert step
    lost = 0.0
    for _ in range(5000):
        rows = plans.plan([candidate(40, right=0.9)], num_tokens=1, num_seqs=1)
        guessed = sum(each.num_planned for each in rows)
        taken = 1 + 10 * guessed
        if guessed:
            plans.learn(guessed, guessed, guessed)
        plans.settle(taken * step)
        lost += taken - 1 - guessed
    # The last time it begins with may cost all of a draft, from what is left by then.
    assert 0 < lost <= FIRST_CREDIT + 5000 * TRIAL_SHARE + 10 * LENGTHS[-1]


def test_a_sequence_that_does_not_pay_is_thought_of_again_later(tiny_llama):
    engine = Engine(config(tiny_llama, tiny_llama))
    plans = engine.speculator.planner
    assert plans is not None
    plans._credit = 0.0
    plans.pays_to_catch_up = lambda candidate, num_seqs: False
    asked: list[int] = []
    plan = plans.plan
    plans.plan = lambda candidates, **sizes: (  # type: ignore[method-assign]
        asked.extend(each.seq.num_tokens for each in candidates) or plan(candidates, **sizes)
    )
    outputs(
        engine,
        SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, drafters=("draft_model",)),
        [[5] * 20],
    )
    assert asked == [20, 21 + REST_STEPS, 22 + 2 * REST_STEPS]
    # Beside one that it pays for, the other is not thought of in every step either.
    paying, other = candidate(1, right=0.95), candidate(600, left=3)
    rows = planner(times_of(0.001, 1e-4)).plan([paying, other], num_tokens=2, num_seqs=2)
    assert [each.seq for each in rows] == [paying.seq]
    assert other.guesser.rethink_at == other.seq.num_tokens + RETHINK_TOKENS and not paying.guesser.rethink_at


def config(model: Path, draft: Path | None, **settings) -> EngineConfig:
    given = {"quantize": "w8a8", "max_model_len": 256, "kv_cache_tokens": 1024, **settings}
    return EngineConfig(model=str(model), draft_model=None if draft is None else str(draft), **given)


def always(engine: Engine, length: int = 4) -> Engine:
    """Have the draft model guess in every step, whatever it costs."""
    plans = engine.speculator.planner
    assert plans is not None
    plans.rests = 0
    plans.pays_to_catch_up = lambda candidate, num_seqs: True
    plans.choose_lengths = lambda times, run_times, chances, tokens, seqs: [
        min(length, chance.limit) for chance in chances
    ]
    return engine


def outputs(engine: Engine, params: SamplingParams, prompts=PROMPTS) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    found: list[list[int]] = [[] for _ in prompts]
    while engine.has_work():
        for delta in engine.step():
            found[int(delta.request_id)] += delta.token_ids
        engine.check()
    assert engine.stats.kv_blocks_used == 0
    return found


@pytest.fixture(scope="module")
def alone(tiny_llama) -> Engine:
    return Engine(config(tiny_llama, None))


@pytest.fixture(scope="module")
def itself(tiny_llama) -> Engine:
    """A model that guesses for itself."""
    return always(Engine(config(tiny_llama, tiny_llama)))


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "top_p": 0.95},
        {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 1.0, "logit_bias": {7: 6.0, 8: 5.0, 2: 4.0}, "min_tokens": 20, "ignore_eos": False},
        {
            "temperature": 0.7,
            "grammar": Grammar("regex", r"([a-c]{3}-[0-9]{2} ){4}"),
            "drafters": ("draft_model",),
        },
    ],
    ids=["greedy", "sampled", "penalties", "bias and least tokens", "grammar"],
)
def test_a_model_that_guesses_for_itself_is_always_right(alone, itself, asked):
    params = SamplingParams(**{"seed": 7, "max_tokens": 40, "ignore_eos": True, **asked})
    before = itself.stats.drafters.get("draft_model")
    drafted, accepted = (before.drafted, before.accepted) if before else (0, 0)
    steps = itself.stats.steps
    assert outputs(itself, params) == outputs(alone, msgspec.structs.replace(params, drafters=()))
    figures = itself.stats.drafters["draft_model"]
    assert figures.drafted - drafted == figures.accepted - accepted > 20
    assert itself.stats.steps - steps < 20


def test_another_model_changes_nothing_either(alone, tiny_llama, other_llama):
    """Of another vocabulary's size, fewer layers, and a context that the sequences outgrow."""
    engine = always(Engine(config(tiny_llama, other_llama)))
    prompts = [*PROMPTS, [317, 318, 319, 5], [9] * 120]  # ids that it has no embedding for
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=60, ignore_eos=True, logit_bias={318: 5.0})
    assert outputs(engine, params, prompts) == outputs(alone, params, prompts)
    figures = engine.stats.drafters["draft_model"]
    assert figures.accepted < figures.drafted / 2
    assert "other-llama (LlamaForCausalLM" in engine.info.draft_model


def test_on_the_gpus_kernels(tiny_llama):
    """Where the tokens it catches up with are computed as a run, and the target's as decodes: the last bits may differ."""
    engine = always(
        Engine(config(tiny_llama, tiny_llama, device=GPU, max_model_len=128, kv_cache_tokens=512))
    )
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=7, ignore_eos=True)
    plain = outputs(engine, msgspec.structs.replace(params, drafters=()), PROMPTS[:1])
    assert outputs(engine, params, PROMPTS[:1]) == plain
    figures = engine.stats.drafters["draft_model"]
    assert figures.drafted >= figures.accepted >= 4


def test_a_prefix_that_both_have_computed_is_found_for_both(tiny_llama):
    engine = always(Engine(config(tiny_llama, tiny_llama)))
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    work: list[DraftRows] = []
    assert engine.draft_model is not None
    guess = engine.draft_model.guess
    engine.draft_model.guess = lambda rows, clock: (work.extend(rows), guess(rows, clock))  # type: ignore[method-assign]
    outputs(engine, params, [[5] * 100])
    assert work[0].start == 0
    work.clear()
    outputs(engine, params, [[5] * 100])
    assert work[0].start == 96
    # Found by the target alone, it is computed by the other, chunk by chunk.
    engine.speculator.planner.pays_to_catch_up = lambda candidate, num_seqs: False
    engine.speculator.planner._credit = 0.0
    work.clear()
    outputs(engine, params, [[6] * 100])
    assert not work
    always(engine)
    outputs(engine, params, [[6] * 100])
    assert work[0].start == 0 and all(
        later.start == before.stop for before, later in itertools.pairwise(work)
    )


def test_preemption_and_aborts_leave_nothing(tiny_llama):
    engine = always(Engine(config(tiny_llama, tiny_llama, kv_cache_tokens=256)))
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=120, ignore_eos=True)
    for number in range(8):
        engine.add_request(str(number), [number + 5] * 40, params)
    for step in range(40):
        if not engine.has_work():
            break
        engine.step()
        if step % 5 == 0:
            engine.abort(str(step // 5))
        engine.check()
    for number in range(8):
        engine.abort(str(number))
    engine.check()
    assert engine.stats.preemptions and engine.stats.kv_blocks_used == 0
    figures = engine.stats.drafters["draft_model"]
    assert figures.accepted == figures.drafted > 0


def test_who_wants_no_guesses_gets_none(itself, tiny_llama, alone):
    before = itself.stats.drafters["draft_model"].drafted if itself.stats.drafters else 0
    outputs(itself, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, drafters=()))
    after = itself.stats.drafters["draft_model"].drafted if itself.stats.drafters else 0
    assert after == before
    with pytest.raises(InvalidRequestError, match="this engine has none"):
        alone.add_request("x", [5], SamplingParams(drafters=("draft_model",)))


def test_another_vocabulary_is_refused(tiny_llama, tmp_path):
    stranger = shutil.copytree(tiny_llama, tmp_path / "stranger")
    file = stranger / "tokenizer.json"
    file.write_text(file.read_text().replace('"</s>"', '"</t>"'))
    with pytest.raises(
        ModelLoadError, match=r"draft_model stranger has another vocabulary than tiny-llama: .*</[st]>"
    ):
        Engine(config(tiny_llama, stranger))
    with pytest.raises(ModelLoadError, match=r"draft_model: .*no such folder"):
        Engine(config(tiny_llama, tmp_path / "nowhere"))


def test_the_same_vocabulary_in_another_file_is_taken(tiny_llama, other_llama, tmp_path):
    copy = shutil.copytree(other_llama, tmp_path / "copy")
    file = copy / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert Engine(config(tiny_llama, copy, draft_quantize="none")).info.draft_model.startswith("copy (")


def test_settings_that_contradict_each_other_are_refused(tiny_llama):
    with pytest.raises(ConfigError, match="speculation is 'off'"):
        config(tiny_llama, tiny_llama, speculation="off")
    with pytest.raises(ConfigError, match="there is no draft_model"):
        config(tiny_llama, None, draft_quantize="w8a8")


def test_its_memory_counts_where_the_pool_is_sized(tiny_llama, monkeypatch):
    monkeypatch.setattr("penstock.scheduler.model_runner._available_memory", lambda: 4 << 20)
    sizes = [
        Engine(config(tiny_llama, draft, kv_cache_tokens=None)).info.kv_blocks_total
        for draft in (None, tiny_llama)
    ]
    assert sizes[1] == pytest.approx(sizes[0] / 2, abs=1)
