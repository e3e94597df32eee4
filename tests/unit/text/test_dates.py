import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.names import find_dates, write_date


@pytest.mark.parametrize(
    "text",
    [
        "08/21/1956",
        "21/8/1956",
        "21.08.1956.",
        "1956-08-21",
        "21 August 1956",
        "August 21, 1956",
        "on the 21st of August, 1956, in Lunde",
        "the 21st of August in the year 1956",
        "Aug 21st 1956",
        "the twenty-first of August 1956",
        "August the twenty-first, nineteen fifty-six",
        "the twenty first of august nineteen hundred and fifty six",
        "am 21. August 1956",
        "le 21 août 1956",
        "el 21 de agosto de 1956",
        "il 21 agosto 1956",
        "21 augustus 1956",
        "1956年8月21日",
        "２１/０８/１９５６",  # full-width digits
    ],
)
def test_one_date_however_it_is_written(text: str) -> None:
    assert find_dates(f"Which poet was born ({text})?") == ["1956-08-21"]


@pytest.mark.parametrize(
    "text",
    [
        "1956",
        "August 1956",
        "21 August",
        "August 21, 56",
        "13/13/1956",
        "32 August 1956",
        "21/08/0956",
        "1/2/3",
        "May I go in 1956?",
        "He may pay 21 or 1956 marks",  # a verb, with other words between
        "nineteen people in August",
        "",
    ],
)
def test_what_is_no_full_date(text: str) -> None:
    assert find_dates(text) == []


def test_a_date_may_be_read_day_first_or_month_first() -> None:
    assert find_dates("04/06/1934") == find_dates("6/4/1934") == find_dates("the fourth of June 1934")


def test_several_dates_each_once() -> None:
    assert find_dates("12 May 1990 to 14 May 1991, that is 05/12/1990") == ["1990-05-12", "1991-05-14"]


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("nineteen hundred", 1900),
        ("nineteen hundred and six", 1906),
        ("nineteen oh six", 1906),
        ("eighteen twelve", 1812),
        ("two thousand", 2000),
        ("two thousand and three", 2003),
        ("twenty twenty-one", 2021),
    ],
)
def test_years_in_words(text: str, year: int) -> None:
    assert find_dates(f"born on 31 March {text}") == [f"{year}-03-31"]


@given(
    st.integers(1000, 2999),
    st.integers(1, 12),
    st.integers(1, 31),
    st.integers(0, 3),
    st.sampled_from(["", "x ", "7 "]),
)
def test_a_date_is_found_in_every_form_it_can_be_written_in(
    year: int, month: int, day: int, form: int, before: str
) -> None:
    low, high = sorted((month, day))
    date = f"{year}-{low:02d}-{high:02d}"
    assert find_dates(f"{before}born {write_date(date, form)}, they say") == [date]


def test_the_forms_differ_where_day_and_month_can_be_told_apart() -> None:
    assert len({write_date("1956-08-21", form) for form in range(4)}) == 4
    assert {write_date("1956-08-09", form) for form in range(4)} == {"1956-08-09", "08/09/1956"}


def test_a_huge_text_costs_no_more_than_its_length() -> None:
    assert find_dates("1/1/" * 50_000) == []
    assert find_dates("May 1 " * 20_000) == []
