import io

from rich.console import Console

from benchmarks.burst import CROWD, CROWD_WORDS, Burst, crowd_texts, table_of


def test_a_crowd_is_the_same_for_one_seed_and_repeats_no_word() -> None:
    texts = crowd_texts(0)
    words = [word for text in texts for word in text.split()]
    assert (len(texts), len(words), len(set(words))) == (CROWD, CROWD * CROWD_WORDS, len(words))
    assert texts == crowd_texts(0) != crowd_texts(1)


def test_the_table_has_medians_and_the_worst_of_all_rounds() -> None:
    output = io.StringIO()
    rounds = [Burst({200: 32}, 10.0, 0.1, 0.5, 1.5, 0.01, 0.02), Burst({200: 31, 503: 1}, 20.0, 0.1, 0.5, 2.5, 0.01, 9)]
    Console(file=output, width=180).print(table_of({"eco": rounds}))
    assert all(text in output.getvalue() for text in ("63 x 200, 1 x 503", "15.00", "2.50", "9.00"))
