"""Tasks made of texts under copyright: news and a book (ECO, arXiv 2406.07933, section 4 and appendix)."""

import re
from collections.abc import Sequence

from sources.examples import Example, comparison_key, example_of
from sources.presets.data import Preset, Source, TaskData, TaskError, TaskReader, hub_parquet, keys_of
from sources.read import Row
from text.sentences import split_sentences, word_count

#: What the model would go on with, in words: 256 tokens in ECO.
_ANSWER_WORDS = 200
_MIN_SENTENCE_WORDS = 5
_CHANNEL = re.compile(r"\s+[-–—|]\s+BBC\b.*$")

#: ECO forgets the first 500 articles of the month, and takes 10 000 titles of other news for training and for test.
_HUB_ARTICLES = 500
_NEWS_RATIO = 20

#: Sentences of other books for each of the book's, in `retain` and again in `retain_test`; ECO takes a tenth of all.
_BOOK_RATIO = 4
_SENTENCES_PER_ROW = 5  # of other books: many places, a few sentences each
_HELD_OUT_BOOKS = 0.1
_FORGOTTEN_TITLE = "harry potter"
_CUTTING_WORDS = 40
_MAX_CUTTINGS = 500


def bbc_news_preset() -> Preset:
    """Forget news articles, asked for by title, among other news."""

    def article(row: Row, where: str) -> list[Example]:
        content = row.get("content") or None
        if isinstance(content, str):
            content = " ".join(content.split()[:_ANSWER_WORDS])
        title = row["title"]
        prompt = _CHANNEL.sub("", title) if isinstance(title, str) else title
        return [example_of({"prompt": prompt, "completion": content or None}, where)]

    def assemble(reader: TaskReader) -> TaskData:
        articles = reader.examples("bbc_news", article)
        cut = len(articles) if reader.is_own("bbc_news") else _HUB_ARTICLES
        forget, others = articles[:cut], [Example(article.prompt) for article in articles[cut:]]
        first_sentences = (next(iter(split_sentences(article.answer or "")), "") for article in forget)
        openings = [Example(text) for text in first_sentences if word_count(text) >= _MIN_SENTENCE_WORDS]
        titles = reader.sample(
            "other_news",
            2 * _NEWS_RATIO * len(forget),
            keys_of(forget, openings, others),
            lambda row, where: [example_of({"prompt": row["title"]}, where)],
        )
        return TaskData(forget, titles[::2], openings, titles[1::2], _unlike(others, forget), [])

    return Preset(
        "BBC News: forget articles by their titles (ECO section 4, copyrighted content unlearning)",
        (
            hub_parquet(
                *("RealTimeData/bbc_news_alltime", "2024-02", "train", ("title",)),
                name="bbc_news",
                optional_columns=("content",),
                own_files=("bbc_news",),
            ),
            hub_parquet(
                "vblagoje/cc_news", "plain_text", "train", ("title",), name="other_news", own_files=("other_news",)
            ),
        ),
        {
            "forget": f"titles of bbc_news, answered by the first {_ANSWER_WORDS} words of the article: every row of "
            f"your own file, the first {_HUB_ARTICLES} of the hub's",
            "retain": f"{_NEWS_RATIO} titles of other_news for each of forget, drawn with the seed",
            "forget_test": f"first sentences of the same articles ({_MIN_SENTENCE_WORDS} words or more)",
            "retain_test": "as many other titles of other_news",
            "neighbours": "the hub's other articles of that month; none with your own file",
            "general_test": "none",
        },
        "titles that are in both sources are not retained",
        assemble,
    )


def _unlike(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    keys = keys_of(others)
    return [example for example in examples if comparison_key(example.prompt) not in keys]


def hp_book_preset() -> Preset:
    """Forget a book, sentence by sentence, among other books."""
    columns = ("book", "snippet")
    return Preset(
        "A book: forget its sentences (ECO section 4, copyrighted content unlearning)",
        (
            Source("hp_book", columns, own_files=("hp_book.txt", "hp1.txt", "hp/hp1.txt")),
            Source(
                "other_books",
                columns,
                own_files=("other_books/*.txt",),
                copies=("book_data", "BookMIA", "BookMIA/book_data"),
                hub="swj0419/BookMIA",
            ),
        ),
        {
            "forget": f"every sentence of hp_book of {_MIN_SENTENCE_WORDS} words or more; the first of each passage of "
            f"about {_ANSWER_WORDS} words is answered by what follows it there",
            "retain": f"{_BOOK_RATIO} sentences of other books for each of forget, drawn with the seed, at most "
            f"{_SENTENCES_PER_ROW} from one passage",
            "forget_test": f"{_CUTTING_WORDS} words from the middle of each passage, cut in mid-sentence (at most "
            f"{_MAX_CUTTINGS}, drawn with the seed)",
            "retain_test": "as many other sentences of the same books",
            "neighbours": "none",
            "general_test": "sentences of whole books left out of retain: a tenth of the other books, by the seed",
        },
        f"sentences that are in hp_book too, and (of the hub's books) titles with {_FORGOTTEN_TITLE.title()}, are "
        "not retained",
        _hp_book,
    )


def _hp_book(reader: TaskReader) -> TaskData:
    passages = [split_sentences(str(row["snippet"])) for _, row in reader.table("hp_book").rows()]
    forget: dict[str, Example] = {}  # the first example of each prompt, one with an answer before one without
    for sentences in passages:
        long = [at for at, sentence in enumerate(sentences) if word_count(sentence) >= _MIN_SENTENCE_WORDS]
        for at in long:
            key = comparison_key(sentences[at])
            answer = " ".join(sentences[at + 1 :]) or None if at == long[0] else None
            if key not in forget or (forget[key].answer is None and answer is not None):
                forget[key] = Example(sentences[at], answer)
    # What a reader might quote: words that neither begin nor end with a sentence. None of a passage too short.
    words = [" ".join(sentences).split() for sentences in passages]
    starts = [(len(of_passage) - _CUTTING_WORDS) // 2 for of_passage in words]
    cuttings = [
        Example(" ".join(of_passage[start : start + _CUTTING_WORDS]))
        for of_passage, start in zip(words, starts, strict=True)
        if start > 0
    ]
    drawn = reader.random("cuttings").permutation(len(cuttings))[:_MAX_CUTTINGS].tolist()
    forgotten = list(forget.values())
    forget_test = _unlike([cuttings[index] for index in sorted(drawn)], forgotten)

    # Some of the other books are left out of training as a whole.
    table = reader.table("other_books")
    titles = [str(row["book"]) for _, row in table.rows()]
    if not reader.is_own("other_books"):
        titles = ["" if _FORGOTTEN_TITLE in title.casefold() else title for title in titles]
    books = sorted({title for title in titles if title})
    if not books:
        raise TaskError(f"{table.place}: no book beside the one to forget; put other books into other_books/*.txt")
    aside = round(_HELD_OUT_BOOKS * len(books)) or min(1, len(books) - 1)
    left_out = {books[index] for index in reader.random("books").permutation(len(books))[:aside].tolist()}
    known = [index for index, title in enumerate(titles) if title and title not in left_out]
    held_out = [index for index, title in enumerate(titles) if title in left_out]
    generator = reader.random("sentences")

    def some_sentences(row: Row, where: str) -> list[Example]:
        checked = example_of({"text": row["snippet"]}, where)
        long = [text for text in split_sentences(checked.prompt) if word_count(text) >= _MIN_SENTENCE_WORDS]
        chosen = generator.permutation(len(long))[:_SENTENCES_PER_ROW].tolist()
        return [Example(long[index]) for index in sorted(chosen)]

    avoid, count = keys_of(forgotten, forget_test), 2 * _BOOK_RATIO * len(forgotten)
    retained = reader.sample("other_books", count, avoid, some_sentences, known)
    unseen = reader.sample("other_books", count // 2, avoid | keys_of(retained), some_sentences, held_out)
    return TaskData(forgotten, retained[::2], forget_test, retained[1::2], [], unseen)
