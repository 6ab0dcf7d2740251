"""A breaker opens after doubts in a row, rests, and lets one try."""

from pennyweight.agents.breaker import Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(doubts_max=3, rest_seconds=10)
    for _ in range(3):
        breaker.doubted(at)
    return breaker


def test_breaker_opens_after_doubts_in_a_row() -> None:
    breaker = Breaker(doubts_max=3, rest_seconds=10)
    states = []
    for _ in range(3):
        states.append(breaker.state(0))
        breaker.doubted(0)
    assert states == ["closed"] * 3
    assert (breaker.state(0), breaker.openings) == ("open", 1)
    assert not breaker.admits(9.9)


def test_breaker_counts_only_doubts_in_a_row() -> None:
    breaker = Breaker(doubts_max=3)
    for _ in range(5):
        breaker.doubted(0)
        breaker.doubted(0)
        breaker.answered()
    assert breaker.state(0) == "closed"
    assert breaker.admits(0)


def test_breaker_half_open_admits_one() -> None:
    breaker = opened()
    assert breaker.state(10) == "half_open"
    assert [breaker.admits(10) for _ in range(3)] == [True, False, False]
    assert breaker.state(10) == "open"
    assert breaker.admits(20)  # the first was never answered


def test_breaker_closes_on_an_answer() -> None:
    breaker = opened()
    assert breaker.admits(10)
    breaker.answered()
    assert [breaker.admits(10) for _ in range(3)] == [True] * 3
    assert breaker.state(10) == "closed"


def test_breaker_that_is_half_open_opens_at_the_first_doubt() -> None:
    breaker = opened()
    breaker.doubted(12)
    assert [breaker.state(at) for at in (12, 21.9, 22)] == ["open", "open", "half_open"]
    assert breaker.openings == 1


def test_breaker_rest_is_not_prolonged_by_what_is_asked_meanwhile() -> None:
    breaker = opened()
    for at in range(10):
        breaker.doubted(at)
    assert breaker.state(10) == "half_open"
