"""What near hits taught, on disk: rings of rows by family, what an operator sees of them, and that a purge forgets them."""

import json

import numpy as np
import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache, Neighbour, Question, family_key
from penstock.cache.explain import learnt_of
from penstock.cache.key import tenant_hash
from penstock.cache.opened import opened_cache
from penstock.cache.operations import purge
from penstock.cache.selection import Selection
from penstock.cache.trust import label_log as label_log_file
from penstock.cache.trust.features import Neighbourhood, features
from penstock.cache.trust.overview import families, plot
from penstock.cache.trust.policy import Observation, TrustPolicy
from penstock.cli_cache_trust import trust

CAP = 1 << 26


def family_of(tenant: str) -> bytes:
    return family_key(tenant=tenant, model="m", fingerprint="f", embedder="e")


def teach(cache: CompletionCache, tenant: str, count: int, wrong: int = 0) -> None:
    """`count` labels of near hits at all cosines above 0.8, of which the `wrong` farthest are not the same answer."""
    policy = TrustPolicy(0.1)
    for number, cosine in enumerate(np.linspace(0.8, 0.999, count)):
        found = features("how are you", "how are you now", float(cosine), Neighbourhood())
        decision = policy.decide(Observation(number * 0x9E3779B97F4A7C15 % 2**64, found), 1.0)
        cache.note_label(family_of(tenant), policy.learn(decision, number >= wrong, 1e9 + number))
    cache.flush()


@pytest.fixture
def taught(open_cache, path):
    cache = open_cache()
    teach(cache, "acme", 600)
    teach(cache, "bolt", 300, wrong=150)
    cache.store(make_key(1), make_completion(1))
    cache.close()
    return path


def test_rows_come_back_in_order_and_only_the_newest_are_kept(open_cache, monkeypatch):
    monkeypatch.setattr(label_log_file, "RING", 8)
    monkeypatch.setattr(label_log_file, "CHUNK", 3)
    cache = open_cache()
    for number in range(20):
        cache.note_label(family_of("acme"), b"%02d" % number)
        if number == 2:
            cache.flush()
            assert cache.labels(family_of("acme")) == (b"000102", 3)
            assert cache.labels(family_of("acme"), 2) == (b"02", 3)
    cache.note_label(family_of("bolt"), b"xx")
    cache.flush()
    assert cache.labels(family_of("acme")) == (b"1213141516171819", 20)
    assert cache.labels(family_of("acme"), 18) == (b"1819", 20)
    assert cache.labels(family_of("acme"), 20) == (b"", 20)
    assert cache.labels(family_of("bolt")) == (b"xx", 1)
    assert cache.labels(family_of("cork")) == (b"", 0)


def test_labels_take_an_eighth_of_the_cap_and_no_more(open_cache, clock):
    cache = open_cache(max_bytes=1 << 20, clock=clock)
    for number in range(300):
        cache.store(make_key(number), make_completion(number))
    cache.flush()
    for tenant in range(40):
        clock.now += 1
        for _ in range(200):
            cache.note_label(family_of(str(tenant)), bytes(88))
        cache.flush()
    kept = [tenant for tenant in range(40) if cache.labels(family_of(str(tenant)))[1]]
    assert 2 < len(kept) < 10 and kept == list(range(40 - len(kept), 40)), "the ones written last"
    assert cache.stats().entries > 200, "answers are not pushed out by labels"


def test_an_operator_sees_what_is_served_and_why(taught, tmp_path, capsys):
    with opened_cache(taught, max_bytes=CAP) as cache:
        acme, bolt = families(cache, 0.1)
        assert (acme.tenant, acme.labels, acme.same) == (tenant_hash("acme"), 600, 600)
        assert acme.serves and acme.servable > 500 and acme.error_rate == 0
        assert (bolt.labels, bolt.same) == (300, 150)
        assert bolt.serves and 40 <= bolt.servable <= 170, "from where on all were right, about"
        assert not any(family.serves for family in families(cache, 0.001)), "600 labels do not show that"
        plot([acme, bolt], str(tmp_path / "trust.png"))
        assert (tmp_path / "trust.png").read_bytes().startswith(b"\x89PNG")
        known = {tenant_hash("acme"): "acme"}
        assert trust(cache, 0.1, known, file=None, as_json=False) == 0
        shown = capsys.readouterr().out
        assert "(acme)" in shown and "600 near hits, 600 with the same answer" in shown
        trust(cache, 0.001, known, file=None, as_json=True)
        assert [row["threshold"] for row in json.loads(capsys.readouterr().out)] == [None, None]


def test_explaining_a_near_hit_looks_at_what_was_learnt(taught):
    def near(tenant: str, similarity: float) -> list[Neighbour]:
        question = Question(bytes(40), family_of(tenant), "how are you now", "", "")
        return [Neighbour(bytes(40), similarity, question, make_completion(1), 1.0)]

    with opened_cache(taught, max_bytes=CAP) as cache:
        good = learnt_of(cache, "how are you", near("acme", 0.99), "none", 0.1)
        assert good.serves and "reaches the learnt threshold" in good.reason
        cold = learnt_of(cache, "how are you", near("acme", 0.99), "none", 0.001)
        assert not cold.serves and "nothing is served yet" in cold.reason
        assert learnt_of(cache, "How many are you now?", near("acme", 0.99), "strict", 0.1) is None
        assert learnt_of(cache, "How are you now?", [], "lean", 0.1) is None


def test_a_purged_tenants_labels_are_gone(taught):
    with opened_cache(taught, max_bytes=CAP) as cache:
        assert purge(cache, Selection(tenant=tenant_hash("acme"), matching="answer")).labels == 0
        assert purge(cache, Selection(tenant=tenant_hash("acme")), dry_run=True).labels == 0
        assert len(families(cache, 0.1)) == 2
        assert purge(cache, Selection(tenant=tenant_hash("acme"))).labels == 600
        (left,) = families(cache, 0.1)
        assert left.tenant == tenant_hash("bolt")
        assert purge(cache, Selection()).labels == 300
        assert families(cache, 0.1) == []
