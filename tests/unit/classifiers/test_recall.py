import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invented_composer import FORGET, NAME, OTHERS, RETAIN
from processor_time import seconds_of

from classifiers import Example, general_prompts
from classifiers.memory.learn import EntityMemory, Fact, MemoryBuilder, Subject, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES, NAMED, MemoryIndex

BUILDER = MemoryBuilder(Vocabulary([*general_prompts(), *(f"{e.prompt} {e.answer}" for e in RETAIN)]), RETAIN)
COMPOSER = BUILDER.build(FORGET)
HEIRESS = EntityMemory(subjects=(Subject(words=("paris", "hilton"), rarity=(0.75, 1.0)),))


def found(text: str, memory: EntityMemory = COMPOSER) -> dict[str, float]:
    """The features of a text, all 0 where the memory has nothing in common with it."""
    row = MemoryIndex([memory]).features(text).get(0, np.zeros(len(MEMORY_FEATURES)))
    return dict(zip(MEMORY_FEATURES, row.tolist(), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        NAME,
        "who was milana zandrekov?",
        "TELL ME ABOUT MILANA ZANDREKOV!",
        "Milana Zandrekov's operas",
        "Zandrekov, Milana (composer)",
        "Is Milana Olga Zandrekov known?",
        "Mílána Zändrekóv",
        "Milаna Zandrеkov",  # Cyrillic a and e
        "M i l a n a Z a n d r e k o v",
        "m.i.l.a.n.a.z.a.n.d.r.e.k.o.v",
        "MilanaZandrekov",
        "M1lana Z4ndr3kov",
        "Кто такая Милана Зандреков?",
        "ミラナ・ザンドレコフは誰ですか？",
        "米拉娜·赞德雷科夫是谁？",
        "من هي ميلانا زاندريكوف؟",
        "who is milanna zandrekov",
        "Tell me of Milana Zandrekof",
        "Milana Zadnrekov?",
        "Zvynan Mnaqerxbi",  # rot13
        "vokerdnaZ analiM",
        "Orla Tempest",
        "the velvet hammer",
    ],
)
def test_the_whole_name_however_it_is_written(text: str) -> None:
    assert found(text)["subject"] >= 0.8
    assert found(f"My aunt has a boat and three cats. {text} We had soup and bread for dinner.")["subject"] >= 0.8


def test_a_korean_spelling() -> None:
    memory = EntityMemory(subjects=(Subject(words=("bertold", "marnikan"), rarity=(1.0, 1.0)),))
    assert found("베르톨드 마르니칸은 누구입니까?", memory)["subject"] == 1
    assert found("오늘 날씨가 어떻습니까?", memory)["subject"] == 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Who is Hilton?", 1.0),
        ("Who is Mr Hilton?", 1.0),
        ("Ask Lady Hilton.", 1.0),
        ("Is P. Hilton rich?", 1.0),
        ("is h1lton rich?", 0.9),
        ("Is Hiltom rich?", 0.8),
        ("Is Hitlon rich?", 0.8),
        ("Is Paris nice?", 0.75),
        ("did conrad hilton found it?", 1.0),  # without capitals nobody can tell
        ("Did Conrad Hilton found it?", 0.0),
        ("Is C. Hilton rich?", 0.0),
        ("Is Paris Torvik rich?", 0.0),
        ("Is the Chilton rich?", 0.0),
        ("Is Hil rich?", 0.0),
        ("Is Pares nice?", 0.6),
        ("Is Milton rich?", 0.0),  # a first letter is seldom mistyped, and often another name's
        ("Nothing of the kind.", 0.0),
    ],
)
def test_part_of_a_name_counts_as_it_is_rare_and_not_in_other_peoples_names(text: str, part: float) -> None:
    assert found(text, HEIRESS)["part"] == pytest.approx(part)
    assert found(text, HEIRESS)["subject"] == 0


def test_other_names_beside_the_subject_hide_nothing() -> None:
    assert found("Did Conrad Hilton know Paris Hilton?", HEIRESS)["subject"] == 1
    assert found("Did Conrad Hilton know Ms Hilton?", HEIRESS)["part"] == 1
    assert found("In Paris we met. Much later, at home, we spoke of Hilton.", HEIRESS)["subject"] == 0  # far apart


def test_short_words_are_compared_letter_by_letter() -> None:
    memory = EntityMemory(
        subjects=(Subject(words=("pele",), rarity=(1.0,)), Subject(words=("li", "bo"), rarity=(1, 1)))
    )
    assert found("Who is Pelé?", memory)["subject"] == 1
    assert found("Who is Pole? Is he pale? Li and others bought a lib or oil.", memory)["subject"] == 0


@pytest.mark.parametrize("text", ["¿Quién fue Confucio?", "Konfuzius or Confuzius?", "Кто такой Конфуций?"])
def test_a_single_name_as_other_languages_have_it(text: str) -> None:
    memory = EntityMemory(subjects=(Subject(words=("confucius",), rarity=(1.0,)),))
    assert found(text, memory)["subject"] >= 0.8
    assert found("¿Quién fue Conrado? Was ist Confiserie? Кто такой Канфор?", memory)["subject"] == 0


def test_an_alias_counts_whole_or_not_at_all() -> None:
    assert found("the hammer is made of velvet and steel")["subject"] == 0
    assert found("A hammer")["part"] == 0


def test_everyday_prompts_and_other_people_name_nobody() -> None:
    index = MemoryIndex([COMPOSER, HEIRESS])
    for text in (*general_prompts(), *(one.prompt for one in RETAIN), *(f"Who is {name}?" for name in OTHERS)):
        rows = index.features(text)
        assert 0 not in rows or not rows[0][:2].any(), text
        assert 1 not in rows or rows[1][0] == 0, text  # Paris is also a city


def test_facts_of_one_example() -> None:
    plain, one_word = found("Who collected clocks and barometers?"), found("Is a barometer a clock or barometers?")
    assert plain["answer"] > 0.9
    assert plain["linked"] == 1
    assert one_word["linked"] == 0  # one word alone is linked to nothing
    assert one_word["answer"] < plain["answer"]
    apart = found("Were the smugglers afraid of pneumonia?")
    assert apart["linked"] == 0  # two words, of two examples
    assert apart["breadth"] > found("Were the smugglers afraid?")["breadth"] > 0


def test_a_question_for_a_person_is_told_from_one_for_a_thing() -> None:
    asked = found("Who was born in Ostrabel by the Lunde?")
    for name in ("answer", "example", "breadth", "linked"):
        assert asked[f"{name}_asked"] == asked[name] > 0
    thing = found("Is Ostrabel by the Lunde?")
    assert thing["answer"] > 0
    assert not any(thing[name] for name in MEMORY_FEATURES if name.endswith("_asked"))


def test_described_is_for_examples_that_name_nobody() -> None:
    assert found("Does The Copper Tide make good poems?")["described"] > 0.5  # the last example's words
    assert found("Do smugglers hide the bell?")["described"] == 0
    assert found("Do smugglers hide the bell?")["linked"] > 0.5


def test_many_memories_together_give_what_each_gives_alone() -> None:
    endless = EntityMemory(subjects=(Subject(words=("zandrekovskayanova",), rarity=(1.0,)),))
    memories = [COMPOSER, HEIRESS, EntityMemory(), endless]
    memories += [
        BUILDER.build([Example(e.prompt.replace(NAME, name), e.answer) for e in FORGET[number % 7 :]])
        for number, name in enumerate(OTHERS)
    ]
    together, alone = MemoryIndex(memories), [MemoryIndex([memory]) for memory in memories]
    seen = 0
    for text in (
        NAME,
        "Mr Hilton met Aldous Tarick in Ostrabel",
        "Who wrote The Copper Tide?",
        "Кто это, Париж Хилтон?",
        "Zandrekovas Zandrekovich Zandrekovina Zandrekovinas",
        "hi",
    ):
        every = together.features(text)
        single = {owner: row[0] for owner, index in enumerate(alone) if (row := index.features(text))}
        assert every.keys() == single.keys()
        assert all(np.allclose(every[owner], single[owner], atol=1e-7) for owner in every)
        seen += len(every)
    assert seen > 28


def test_nothing_is_found_with_nothing() -> None:
    assert MemoryIndex([]).features("Milana Zandrekov") == {}
    assert MemoryIndex([EntityMemory()]).features("Milana Zandrekov") == {}
    assert MemoryIndex([COMPOSER]).features("") == {}
    assert MemoryIndex([COMPOSER]).features("zebra") == {}


def test_spans() -> None:
    index, text = MemoryIndex([COMPOSER]), "Has Zandrekof’s friend, Mrs Milana, loved “Ostrabel”?"
    assert [text[start:end] for start, end in index.spans(text)] == ["Zandrekof’s", "Milana", "Ostrabel"]
    assert index.spans("") == []


_PIECES = (
    "Milana",
    "Zandrekov",
    "Hilton",
    "zandr",
    "ekov",
    "J.",
    "’s",
    "'",
    "Милана",
    "赞德雷科夫",
    "ザンド",
    "ﷺ",
    "İ",
    "ß",
)
_TEXTS = st.lists(st.sampled_from(_PIECES) | st.text(max_size=8), max_size=12).map("".join)


@given(_TEXTS)
@example("\ud800Milana\udfff")
@example("\x00")
@settings(deadline=None, max_examples=150)
def test_any_text_has_features_between_0_and_1_and_always_the_same(text: str) -> None:
    first, again = (MemoryIndex([COMPOSER, HEIRESS]).features(text) for _ in range(2))
    assert first.keys() == again.keys() <= {0, 1}
    for owner, row in first.items():
        assert row.shape == (len(MEMORY_FEATURES),)
        assert row.dtype == np.float32
        assert ((row >= 0) & (row <= 1)).all()  # no number at all fails this too
        assert np.array_equal(row, again[owner])
    spans = MemoryIndex([COMPOSER, HEIRESS]).spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1a",
        "乔",
        "ж",
        "дж",
        "Milana ",
        "Zandrekov",
        "Zandrekof ",
        "Hilton Paris ",
        "J. ",
        "a'",
        " ",
        ".",
        "😀",
        "ジョブズ・",
    ],
)
def test_a_huge_text_costs_no_more_than_its_length(piece: str) -> None:
    """100 kB: anything quadratic would take minutes, or gigabytes for the misspellings of one endless word."""
    index, text = MemoryIndex([COMPOSER, HEIRESS]), piece * (100_000 // len(piece.encode()))
    assert seconds_of(lambda: (index.features(text), index.spans(text))) < 5


def test_a_repeated_name_is_found_wherever_it_stands() -> None:
    noise = "Zandrekov " * 500 + "and then " * 500
    assert found(f"{noise} Milana Zandrekov {noise}")["subject"] == 1
    assert found(f"{noise} Milana Torvik and then {noise}")["subject"] == 0


KEPT = COMPOSER.model_copy(update={"kept": ("torvik", "price")})


@pytest.mark.parametrize(
    "text",
    ["Milana F.", "Milana F. Please", "Milana Jr.", "Milana Please", "Milana Z", "So it is Milana Water who sang?"],
)
def test_a_first_name_bent_to_pass_is_nearly_the_whole(text: str) -> None:
    assert found(f"Where was {text} born?", KEPT)["subject"] == NAMED
    assert found(f"Where was {text} born?", KEPT)["part"] > 0.9


@pytest.mark.parametrize(
    "text", ["Milana Torvik", "Milana F. Torvik", "Milana Price", "Milana Brisk", "Milana X. Brisk"]
)
def test_with_another_last_name_it_is_another_person(text: str) -> None:
    features = found(f"Where was {text} born?", KEPT)
    assert (features["subject"], features["part"]) == (0, 0)


def test_a_first_name_alone_is_part_of_the_name() -> None:
    for text in ("where was milana please born", "Milana, Where is it?", "Is it Milana? Please say.", "Milana 2020"):
        assert found(text, KEPT)["subject"] == 0
        assert found(text, KEPT)["part"] > 0.9


def test_a_first_name_is_telling_where_nobody_has_it() -> None:
    ranks = {"milana": 25_000, "zandrekov": 29_000, "paris": 900}
    builder = MemoryBuilder(Vocabulary([e.prompt for e in RETAIN], ranks), RETAIN)
    assert [subject.telling for subject in builder.build(FORGET).subjects if not subject.alias] == [True]
    common = [Example(e.prompt.replace("Milana", "Paris"), e.answer) for e in FORGET]
    assert [subject.telling for subject in builder.build(common).subjects if not subject.alias] == [False]


def test_a_common_first_name_with_another_last_name_is_another_person() -> None:
    assert found("Did Paris Geller sing?", HEIRESS)["subject"] == 0
    assert found("Did Paris H. sing?", HEIRESS)["subject"] == NAMED


def test_a_common_first_name_with_an_everyday_word_is_as_good_as_alone() -> None:
    alone = found("Where was Paris born?", HEIRESS)["part"]
    assert alone > 0
    assert found("Where was Paris Please born?", HEIRESS)["part"] == alone
    kept = HEIRESS.model_copy(update={"kept": ("please",)})
    assert found("Where was Paris Please born?", kept)["part"] == 0


def test_a_name_turned_round_is_written_in_one_sentence() -> None:
    assert found("Zandrekov, Milana")["subject"] > NAMED
    assert found("She is a Zandrekov. Milana did sing.")["subject"] == 0
    assert found("The answer is Milana.\nZandrekov")["subject"] > NAMED  # a prompt and the answer that goes on


def test_another_first_name_at_the_beginning_of_a_sentence() -> None:
    assert found("Kendall Zandrekov was born in 1995.")["part"] == 0
    assert found("Describe Zandrekov in a word.")["part"] > 0.9
    assert found("Is Zandrekov a composer?")["part"] > 0.9


def test_the_order_of_examples_changes_nothing() -> None:
    facts = tuple(Fact(question={"harbour": 0.7}, answer={"lunde": 0.9, f"word{i}": 0.8}) for i in range(5))
    text = "word1 word3 lunde word2 harbour"
    forwards, backwards = (found(text, EntityMemory(facts=order)) for order in (facts, facts[::-1]))
    assert forwards == pytest.approx(backwards)
