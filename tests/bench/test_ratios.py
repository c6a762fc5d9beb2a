from bench.ratios import BARS, Bar, Sample, Spread, by_round, percentile, ratio, spread


def samples(*values: tuple[int, str, float]) -> list[Sample]:
    return [Sample(number, server, "decode", value) for number, server, value in values]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0, 0.2, 0.5, 0.95, 1)] == [1, 1, 3, 5, 5]
    assert percentile([7.0], 0.95) == 7


def test_a_round_counts_once_with_its_median() -> None:
    found = samples((0, "a", 1), (0, "a", 9), (0, "a", 2), (1, "a", 5), (0, "b", 100))
    assert by_round(found, ("a", "decode")) == {0: 2, 1: 5}


def test_ratios_are_formed_within_rounds() -> None:
    """A machine twice as slow in one round changes no ratio."""
    found = samples((0, "a", 10), (0, "b", 5), (1, "a", 20), (1, "b", 10), (2, "a", 99))
    assert ratio(found, ("a", "decode"), ("b", "decode")) == Spread(2, 2, 2)
    assert ratio(found, ("a", "decode"), ("c", "decode")) is None


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None
    assert spread([3, 1, 2]) == Spread(1, 2, 3)


def test_a_bar_holds_at_its_limit_and_on_its_side() -> None:
    cells = ("a", "x"), ("b", "x")
    assert Bar("", *cells, 1.3, "more").met(1.3)
    assert not Bar("", *cells, 1.3, "more").met(1.29)
    assert Bar("", *cells, 0.15, "less").met(0.15)
    assert not Bar("", *cells, 0.15, "less").met(0.16)
    assert len(BARS) == 7
