"""News and book presets, on small files."""

from pathlib import Path

import pytest
from task_files import write_csv, write_jsonl, write_parquet

from classifiers import Example
from sources.presets.plan import TaskError, load_task, plan_task
from text.sentences import word_count

ARTICLE = "The council met on Monday. It agreed to build a bridge over the river."


def prompts(examples: list[Example]) -> list[str]:
    return [example.prompt for example in examples]


def write_news(folder: Path, count: int) -> None:
    rows = [{"date": "2018", "title": f"Elsewhere story {n}", "text": "x"} for n in range(count)]
    write_parquet(folder / "plain_text/train-00000-of-00002.parquet", rows[: count // 2])
    write_parquet(folder / "plain_text/train-00001-of-00002.parquet", rows[count // 2 :])


def test_news_of_the_operators_own(tmp_path: Path) -> None:
    titles = ["Bridge agreed - BBC News", "River - what next? – BBC Sport", "No body"]
    bodies = [ARTICLE, "Short one. " + "Word " * 300, ""]
    rows = [{"title": title, "content": body} for title, body in zip(titles, bodies, strict=True)]
    write_csv(tmp_path / "bbc_news.csv", rows)
    write_news(tmp_path, 200)
    first, again, other = (load_task(plan_task("bbc-news", tmp_path, seed)) for seed in (3, 3, 4))
    assert prompts(first.forget) == ["Bridge agreed", "River - what next?", "No body"]
    assert first.forget[0].answer == ARTICLE
    assert word_count(first.forget[1].answer or "") == 200
    assert first.forget[2].answer is None
    assert prompts(first.forget_test) == ["The council met on Monday."]
    assert (len(first.retain), len(first.retain_test), first.neighbours) == (60, 60, [])
    assert not set(prompts(first.retain)) & set(prompts(first.retain_test))
    assert first == again
    assert prompts(first.retain) != prompts(other.retain)


def test_a_month_of_the_hub_is_forgotten_in_part(tmp_path: Path) -> None:
    rows = [{"title": f"Story {n}", "content": f"{ARTICLE} {n}"} for n in range(510)]
    write_parquet(tmp_path / "2024-02/train-00000-of-00001.parquet", [*rows, {"title": "story 4", "content": "Again."}])
    write_jsonl(tmp_path / "other_news.jsonl", [{"title": f"Other {n}"} for n in range(50)] + [{"title": "Story 1"}])
    data = load_task(plan_task("bbc-news", tmp_path))
    assert prompts(data.forget) == [f"Story {n}" for n in range(500)]
    assert prompts(data.neighbours) == [f"Story {n}" for n in range(500, 510)]
    assert sorted(prompts(data.retain + data.retain_test)) == sorted(f"Other {n}" for n in range(50))


def test_empty_titles_of_the_operators_own_news(tmp_path: Path) -> None:
    write_csv(tmp_path / "bbc_news.csv", [{"title": "Bridge", "content": ARTICLE}, {"title": "", "content": ARTICLE}])
    write_news(tmp_path, 40)
    with pytest.raises(TaskError, match=r"^--task bbc-news: .*bbc_news\.csv: row 2: prompt is empty"):
        load_task(plan_task("bbc-news", tmp_path))


def book(name: str, sentences: int) -> str:
    lines = [f"In {name} it was Mr. Quill who opened door number {n} that morning. He ran." for n in range(sentences)]
    return "\n\n".join(["CHAPTER ONE", *lines])


def test_a_book_among_books(tmp_path: Path) -> None:
    (tmp_path / "hp_book.txt").write_text(book("the forest", 60), encoding="utf-8")
    others = tmp_path / "other_books"
    others.mkdir()
    shared = "\n\nIn the forest it was Mr. Quill who opened door number 7 that morning."
    for name in ("harbour", "desert", "city"):
        (others / f"{name}.txt").write_text(book(f"the {name}", 200) + shared, encoding="utf-8")
    data = load_task(plan_task("hp-book", tmp_path, seed=2))
    assert len(data.forget) == 60
    assert all(word_count(prompt) >= 5 for prompt in prompts(data.forget))
    # A passage has some 200 words, a pair of sentences 16; the first long sentence of each is answered.
    answered = [example for example in data.forget if example.answer]
    assert len(answered) == 5
    assert answered[0].prompt == "In the forest it was Mr. Quill who opened door number 0 that morning."
    assert (answered[0].answer or "").startswith("He ran. In the forest it was")
    assert all(190 <= word_count(f"{example.prompt} {example.answer}") <= 215 for example in answered[:4])
    assert len(data.forget_test) == 5
    assert {len(prompt.split()) for prompt in prompts(data.forget_test)} == {40}
    book_names = {name: {p.split()[2] for p in prompts(getattr(data, name))} for name in ("retain", "general_test")}
    assert len(book_names["retain"]) == 2
    assert len(book_names["general_test"]) == 1
    assert not book_names["retain"] & book_names["general_test"]
    assert not set(prompts(data.forget)) & set(prompts(data.retain + data.retain_test + data.general_test))
    assert len(set(prompts(data.retain + data.retain_test))) == len(data.retain) + len(data.retain_test)
    assert data == load_task(plan_task("hp-book", tmp_path, seed=2))


def test_the_hubs_copy_of_the_book_is_not_retained(tmp_path: Path) -> None:
    (tmp_path / "hp1.txt").write_text(book("the forest", 12), encoding="utf-8")
    rows = [
        {
            "book_id": n,
            "book": title,
            "snippet_id": n,
            "label": 1,
            "snippet": book(f"the {word}", 8).removeprefix("CHAPTER ONE"),
        }
        for n, (title, word) in enumerate(
            [("Harry Potter and the Sorcerer's Stone.txt", "castle"), ("Emma.txt", "village"), ("Ulysses.txt", "town")]
            * 3
        )
    ]
    write_jsonl(tmp_path / "book_data.jsonl", rows)
    data = load_task(plan_task("hp-book", tmp_path))
    everything = prompts(data.retain + data.retain_test + data.general_test)
    assert everything
    assert not [prompt for prompt in everything if "castle" in prompt]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_book(tmp_path: Path, text: str) -> None:
    (tmp_path / "hp_book.txt").write_text(text)
    with pytest.raises(TaskError, match=r"hp_book\.txt: empty; expected plain text"):
        load_task(plan_task("hp-book", tmp_path))


def test_a_book_without_a_sentence_long_enough(tmp_path: Path) -> None:
    (tmp_path / "hp_book.txt").write_text("He ran. She ran.")
    (tmp_path / "other_books").mkdir()
    (tmp_path / "other_books/one.txt").write_text(book("the city", 5))
    with pytest.raises(TaskError, match=r"^--task hp-book: the forget set is empty"):
        load_task(plan_task("hp-book", tmp_path))


def test_no_other_book(tmp_path: Path) -> None:
    (tmp_path / "hp_book.txt").write_text(book("the forest", 5))
    write_jsonl(tmp_path / "BookMIA.jsonl", [{"book": "Harry Potter.txt", "snippet": "Not this one at all."}])
    with pytest.raises(TaskError, match=r"no book beside the one to forget; put other books into other_books"):
        load_task(plan_task("hp-book", tmp_path))
