from penstock.cache.trust.features import MOST_DIFFERING, NAMES, Neighbourhood, features


def numbers(
    query: str, neighbour: str, cosine: float = 0.9, around: Neighbourhood | None = None
) -> dict[str, float]:
    return dict(zip(NAMES, features(query, neighbour, cosine, around).numbers, strict=True))


def test_equal_texts_are_as_near_as_can_be():
    found = numbers("Cancel my order", "cancel my order!", 1.0)
    assert found["words"] == found["order"] == found["ends"] == found["length"] == found["figures"] == 1.0
    assert not features("Cancel my order", "cancel my order!", 1.0).differing


def test_turned_words_show_in_the_order_alone():
    found = numbers("from paris to london", "from london to paris")
    assert found["words"] == 1.0
    assert found["order"] < 0.5


def test_other_figures_show():
    assert numbers("convert 5 miles", "convert 6 miles")["figures"] == 0.0


def test_differing_words_are_counted_as_often_as_they_stand():
    # Both texts hold "to" and "from" in their first halves.
    swapped = features("how to go from here to there", "how to go from here from there", 0.95)
    assert len(swapped.differing) == 2
    assert swapped.differing != features("how to go from here to there", "how to go from here", 0.9).differing


def test_texts_without_words_and_long_ones_have_features_too():
    assert len(features("", "", 0.8).numbers) == len(NAMES)
    assert len(features("", "?!", 0.8).numbers) == len(NAMES)
    other = features("word " * 5000, " ".join(map(str, range(5000))), 0.8)
    assert len(other.differing) == MOST_DIFFERING


def test_a_rival_nearby_takes_the_margin():
    alone, rivalled = numbers("a", "b", 0.9), numbers("a", "b", 0.9, Neighbourhood(agreeing=2, rival=0.88))
    assert rivalled["margin"] < 0.05 < alone["margin"]
    assert rivalled["support"] > alone["support"]
