"""Who goes first: tenants by what they have had, priorities, deadlines; and prompts that let streams go on."""

import random

import msgspec
import pytest
from played_scheduler import Machine
from steady_clock import SteadyClock

from penstock import Engine, EngineConfig, InvalidRequestError, OverloadedError, SamplingParams
from penstock.errors import ConfigError
from penstock.scheduler.scheduler import FEWEST, LEAST_PROMPT_ROOM, MOST_STEPS_BESIDE
from penstock.scheduler.sequence import Status
from penstock.scheduler.step_times import StepTimes
from penstock.scheduler.tenant_shares import MAX_IDLE, TenantShares
from penstock.scheduler.urgency import Urgency


def linear_times(base: float, per_token: float) -> StepTimes:
    times = StepTimes()
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        times.record(size, base + per_token * size)
    return times


def output_tokens(machine: Machine, steps: int) -> dict[str, int]:
    """What each tenant got."""
    got: dict[str, int] = {}
    for _ in range(steps):
        for item in machine.step().scheduled:
            if item.seq.num_output_tokens:
                got[item.seq.tenant] = got.get(item.seq.tenant, 0) + 1
        machine.check()
    return got


@pytest.mark.parametrize("weights", [{}, {"small": 3.0}])
def test_a_tenant_with_ten_times_the_requests_gets_no_more(weights):
    machine = Machine(400, 4, 6, 32, weights=weights)
    rng = random.Random(0)
    for number in range(2200):
        prompt = [rng.randrange(100) for _ in range(12)]
        machine.add(prompt, 4, tenant="small" if number % 11 == 0 else "large")
    got = output_tokens(machine, 150)
    assert {seq.tenant for seq in machine.scheduler.waiting} == {"small", "large"}
    assert got["small"] / got["large"] == pytest.approx(weights.get("small", 1.0), rel=0.15)


def test_a_weight_told_with_a_request_counts_and_a_configured_one_stands():
    told = {"small": 3.0, "large": 1.0, "fixed": 50.0}
    machine = Machine(400, 4, 6, 32, weights={"fixed": 2.0})
    for number in range(2400):
        tenant = ("small", "large", "fixed")[number % 3]
        machine.add([number % 97] * 12, 4, tenant=tenant, weight=told[tenant])
    got = output_tokens(machine, 150)
    assert {seq.tenant for seq in machine.scheduler.waiting} == set(told)
    assert got["small"] / got["large"] == pytest.approx(3, rel=0.15)
    assert got["fixed"] / got["large"] == pytest.approx(2, rel=0.15)


def test_the_last_weight_told_is_the_tenants():
    shares = TenantShares()
    shares.enter("one", 4.0)
    shares.charge("one", 8, is_output=False)
    shares.enter("one", 2.0)
    shares.charge("one", 8, is_output=False)
    assert shares.had("one") == 2 + 4


def test_who_comes_late_does_not_wait_for_the_others_queue():
    machine = Machine(400, 4, 6, 32)
    for number in range(200):
        machine.add([number] * 12, 4, tenant="large")
    for _ in range(20):
        machine.step()
    late = machine.add([7] * 12, 4, tenant="small")
    steps = 0
    while late.num_output_tokens == 0:
        machine.step()
        steps += 1
    assert steps <= 4  # a place becomes free in nearly every step


def test_a_pause_saves_up_nothing():
    shares = TenantShares()
    shares.enter("busy")
    shares.charge("busy", 1000, is_output=False)
    shares.enter("fresh")
    assert shares.had("fresh") == shares.had("busy") == 1000
    shares.charge("fresh", 300, is_output=True)
    shares.leave("fresh")
    shares.enter("fresh")
    assert shares.had("fresh") == 1600  # nor does one forgive
    shares.leave("fresh")
    shares.leave("busy")
    shares.enter("busy")
    assert shares.had("busy") == 0


def test_counters_of_the_absent_are_bounded():
    shares = TenantShares()
    shares.enter("one")
    for number in range(MAX_IDLE + 100):
        shares.enter(f"t{number}")
        shares.leave(f"t{number}")
    assert len(shares._idle) == MAX_IDLE


def test_priority_takes_a_place_and_gives_it_back():
    machine = Machine(64, 4, 2, 32)
    low = [machine.add([number] * 4, 12, priority=5) for number in range(2)]
    machine.step()
    urgent = machine.add([9] * 4, 3, priority=-5)
    equal = machine.add([8] * 4, 3, priority=5)
    machine.step()
    assert urgent.num_output_tokens == 1 and low[0].status is Status.RUNNING
    assert low[1].status is Status.WAITING, "the youngest of the lowest priority makes room"
    assert equal.num_output_tokens == 0
    while urgent in machine.live:
        machine.step()
        machine.check()
    machine.step()
    assert low[1].status is Status.RUNNING, "what was running comes before what is new"
    machine.drain()
    machine.check_baseline()


def test_a_tenants_own_are_ordered_by_deadline():
    machine = Machine(64, 4, 1, 32)
    machine.add([1] * 4, 2)
    machine.step()
    seqs = {}
    for name, due in (("none", None), ("late", 9.0), ("soon", 2.0)):
        seqs[name] = machine.add([len(seqs)] * 4, 1)
        machine.scheduler.waiting.remove(seqs[name])
        seqs[name].urgency = Urgency(ttft_deadline=due)
        machine.scheduler.waiting.push(seqs[name])
    ended = []
    while machine.live:
        machine.step()
        ended += [name for name, seq in seqs.items() if seq.status is Status.FINISHED and name not in ended]
    assert ended == ["soon", "late", "none"]


def test_a_long_prompt_lets_streams_go_on():
    times = linear_times(0.020, 0.001)
    machine = Machine(4000, 4, 16, 512, times=times)
    for number in range(8):
        machine.add([number], 300)
    machine.step()
    machine.add([99] * 4000, 1)
    alone = times.seconds(8)
    assert alone is not None
    num_tokens = [machine.step().num_tokens for _ in range(40)]
    longest = max(times.seconds(num) or 0.0 for num in num_tokens)
    assert min(num_tokens) >= 8 + LEAST_PROMPT_ROOM and alone < longest <= 2 * alone


@pytest.mark.parametrize(
    ("seconds_per_token", "tokens"),
    [(0.0009, 11), (0.0017, 8), (0.0035, 4), (0.02, 2)],
    ids=["half as long again", "8 take less than promised", "8 would take more", "any would"],
)
def test_a_prompt_takes_on_fewer_tokens_where_each_takes_long(seconds_per_token, tokens):
    # Eight streams alone take 20 ms.
    times = linear_times(0.020 - 8 * seconds_per_token, seconds_per_token)
    machine = Machine(4000, 4, 16, 512, times=times)
    for number in range(8):
        machine.add([number], 300)
    machine.step()
    machine.add([99] * 400, 1)
    assert machine.step().num_tokens == 8 + tokens


def test_what_streams_take_alone_is_not_measured_by_steps_with_prompts():
    """Eight tokens and ten are one size: a long prompt's steps must not pass for the streams' own."""
    times, decodes = linear_times(0.011, 0.001), linear_times(0.011, 0.001)
    for _ in range(50):
        times.record(10, 0.060)
        times.record(16, 0.070)
    tokens = []
    for own in (None, decodes):
        machine = Machine(4000, 4, 16, 512, times=times, decode_times=own)
        for number in range(8):
            machine.add([number], 300)
        machine.step()
        machine.add([99] * 400, 1)
        tokens.append(machine.step().num_tokens - 8)
    assert tokens[0] >= LEAST_PROMPT_ROOM and tokens[1] == FEWEST


@pytest.mark.parametrize(
    ("overhead", "slow_once", "fewest", "most", "longest"),
    [
        (0.031, 1, 6, 15, 0.1),
        (0.0, 1, 50, 60, 2 * 0.007),
        (0.0, 5, 50, 130, 2 * 0.007),
    ],
    ids=["launched beside prompts", "no dearer beside prompts", "no dearer, the first one slow for once"],
)
def test_a_prompt_is_not_cut_small_where_its_size_is_not_what_costs(
    overhead, slow_once, fewest, most, longest
):
    """Decodes that are replayed as a graph, and launched one by one as soon as there is a prompt."""
    known = {name: StepTimes() for name in ("times", "decode_times", "prompt_times")}
    machine = Machine(8192, 4, 80, 8192, **known)
    beside = 0

    def step() -> float:
        nonlocal beside
        done = machine.step()
        has_prompt = any(item.num_new_tokens > 1 for item in done.scheduled)
        seconds = 0.0055 + 23e-6 * done.num_tokens + (overhead if has_prompt else 0)
        beside += has_prompt
        measured = seconds * (slow_once if beside == 2 and has_prompt else 1)
        known["times"].record(done.num_tokens, measured)
        known["prompt_times" if has_prompt else "decode_times"].record(done.num_tokens, measured)
        return seconds

    for number in range(64):
        machine.add([number] * 4, 300)
    for _ in range(20):
        step()
    prompt = machine.add([99] * 8000, 1)
    took = []
    while prompt in machine.live:
        took.append(step())
    assert fewest <= len(took) <= most
    assert max(took) <= longest


def test_streams_have_a_step_alone_now_and_then():
    machine = Machine(4000, 4, 16, 512, times=linear_times(0.020, 0.001))
    for number in range(8):
        machine.add([number], 300)
    machine.step()
    machine.add([99] * 4000, 1)
    tokens = [machine.step().num_tokens for _ in range(2 * MOST_STEPS_BESIDE + 2)]
    alone = [number for number, count in enumerate(tokens) if count == 8]
    assert alone == [MOST_STEPS_BESIDE, 2 * MOST_STEPS_BESIDE + 1]


def test_many_that_wait_are_not_kept_waiting_for_few_that_run():
    machine = Machine(4000, 4, 64, 512, times=linear_times(0.020, 0.001))
    machine.add([1], 300)
    machine.step()
    for number in range(30):
        machine.add([number] * 100, 1)
    assert machine.step().num_tokens > 400


@pytest.fixture(scope="module")
def config(tiny_llama) -> EngineConfig:
    return EngineConfig(model=str(tiny_llama), max_model_len=256, max_num_seqs=2, kv_cache_tokens=1024)


PARAMS = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)


def test_what_is_hopeless_is_refused_at_once(config):
    engine = Engine(config)
    engine.clock = SteadyClock()
    # Nothing is known yet: everything is tried.
    engine.add_request("first", [5] * 20, PARAMS, urgency=Urgency(ttft_deadline=1e-9))
    engine.abort("first")
    for name in ("a", "b"):
        engine.add_request(name, [6] * 20, PARAMS)
    for _ in range(4):
        engine.step()
    with pytest.raises(
        OverloadedError, match=r"first token is expected in .* its deadline is 0\.001 s"
    ) as refused:
        engine.add_request("c", [7] * 20, PARAMS, urgency=Urgency(ttft_deadline=0.001))
    assert refused.value.retry_after is not None and refused.value.retry_after > 0
    with pytest.raises(OverloadedError, match="last token"):
        engine.add_request("d", [7] * 20, PARAMS, urgency=Urgency(deadline=0.2))
    engine.add_request("e", [7] * 20, PARAMS, urgency=Urgency(deadline=60))
    assert len(engine.scheduler.waiting) == 1
    engine.check()


def test_what_turns_out_too_late_is_ended_once(config):
    engine = Engine(config)
    engine.clock = SteadyClock()
    engine.add_request("late", [5] * 20, PARAMS, urgency=Urgency(deadline=0.15))
    engine.add_request("fine", [6] * 20, PARAMS, urgency=Urgency(deadline=1000))
    engine.add_request("unseen", [7] * 20, PARAMS, urgency=Urgency(ttft_deadline=0.05, priority=1))
    ends: dict[str, list[str]] = {}
    tokens: dict[str, int] = {}
    while engine.has_work():
        for delta in engine.step():
            tokens[delta.request_id] = tokens.get(delta.request_id, 0) + len(delta.token_ids)
            if delta.finish_reason:
                ends.setdefault(delta.request_id, []).append(delta.error or delta.finish_reason)
        engine.check()
    assert ends["fine"] == ["length"] and tokens["fine"] == 50
    assert ends["late"] == [f"The deadline of 0.15 s has passed after {tokens['late']} tokens."]
    assert ends["unseen"] == ["The deadline of 0.05 s has passed after 0 tokens."]
    assert not engine._with_deadline and engine.stats.kv_blocks_used == 0


def test_urgency_and_weights_are_checked(config):
    for wrong in ({"priority": 10}, {"priority": 1.5}, {"deadline": 0}, {"ttft_deadline": float("nan")}):
        with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
            Urgency(**wrong)
    with pytest.raises(ConfigError, match="tenant_weights"):
        msgspec.structs.replace(config, tenant_weights={"a": 0.0})


def test_a_slow_first_step_of_a_size_is_forgotten() -> None:
    times = StepTimes()
    for seconds in (0.5, 0.01, 0.011):
        times.record(8, seconds)
    assert times.seconds(8) < 0.02
    times.record(8, 0.002)
    assert times.seconds(8) > 0.005, "later ones move it slowly"
