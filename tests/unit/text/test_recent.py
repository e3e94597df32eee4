from text.recent import Recent


def test_what_was_used_lately_stays_and_the_rest_goes() -> None:
    kept: Recent[int, str] = Recent(10)
    for number in range(100):
        kept.put(number, str(number))
        assert kept.get(0) == "0"  # used all the time
    assert [kept.get(number) for number in range(91, 100)] == [str(number) for number in range(91, 100)]
    assert kept.get(50) is None
    assert len(kept) <= 20
    assert kept.get_all([0, 50, 99]) == ["0", None, "99"]
