"""Which requests share a key, and which must not."""

import pytest
from cache_worker import make_key

from penstock.cache import CacheKey, completion_key


def key(**changes: object) -> CacheKey:
    parts = {
        "tenant": "acme",
        "namespace": "",
        "model": "m",
        "fingerprint": "f",
        "request": {"a": 1, "b": [1, 2]},
    }
    return completion_key(**(parts | changes))


def test_order_of_fields_does_not_matter_at_any_depth():
    one = key(request={"a": 1, "b": {"c": 2, "d": [3]}})
    assert one == key(request={"b": {"d": [3], "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "other"},
        {"namespace": "n"},
        {"model": "m2"},
        {"fingerprint": "f2"},
        {"request": {"a": 1, "b": [2, 1]}},
        {"request": {"a": "1", "b": [1, 2]}},
        {"request": {"a": 1.0, "b": [1, 2]}},
        {"request": {"a": 1, "b": [1, 2], "c": None}},
    ],
)
def test_every_part_changes_place_and_digest(changes):
    assert key(**changes).place != key().place
    assert key(**changes).digest != key().digest


def test_parts_cannot_be_shifted_into_each_other():
    assert key(tenant="ab", namespace="c").place != key(tenant="a", namespace="bc").place
    assert key(model="ab", fingerprint="c").digest != key(model="a", fingerprint="bc").digest


def test_the_tenant_is_the_prefix_then_the_namespace():
    places = [make_key(n, t, s).place for n in range(20) for t in ("acme", "bolt") for s in ("", "x")]
    assert {len(place) for place in places} == {40}
    assert len({place[:16] for place in places}) == 2
    assert len({place[:24] for place in places}) == 4
    assert len(set(places)) == 80


def test_integer_keys_of_a_logit_bias_are_allowed():
    assert key(request={"logit_bias": {7: 1.0}}) == key(request={"logit_bias": {"7": 1.0}})


def test_what_json_cannot_say_is_refused():
    with pytest.raises(TypeError):
        key(request={"a": {1, 2}})
