import functools
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from invented_composer import FORGET, NAME, RETAIN

from classifiers import Example, HeadError, general_prompts
from classifiers.memory.learn import EntityMemory, Fact, MemoryBuilder, Subject, Vocabulary

FIRST = (
    "Alwen", "Bardo", "Cyrene", "Dorrit", "Ewald", "Fiorel", "Grethe", "Halvar", "Ilsabe", "Jorik",
    "Katrin", "Lorcan", "Mireva", "Norvald", "Oriel", "Perrin", "Quilla", "Rasmin", "Sorcha", "Tivadar",
)  # fmt: skip
LAST = (
    "Ashgrove", "Brandvold", "Cairnwood", "Delacourt", "Eskelund", "Fairholme", "Gravlund", "Hartvig", "Ironmoor",
    "Jastrow", "Kjellgren", "Lindqvist", "Morwenna", "Nightfall", "Ottoson", "Pemberly", "Quistgard", "Rosendal",
    "Silvertop", "Thornbury",
)  # fmt: skip
TOPICS = (
    "childhood", "parents", "first book", "last book", "awards", "style", "influences", "school", "home", "travels",
    "themes", "heroes", "critics", "readers", "publisher", "hobbies", "languages", "letters", "garden", "legacy",
)  # fmt: skip


def questions(name: str) -> list[Example]:
    """One author's examples, in the form of TOFU's."""
    return [
        Example(f"What is known of the {topic} of {name}?", f"The {topic} of {name} is famous.") for topic in TOPICS
    ]


@functools.cache
def vocabulary(retain: tuple[Example, ...]) -> Vocabulary:
    texts = (f"{example.prompt} {example.answer or ''}" for example in retain)
    return Vocabulary([*general_prompts()[::3], *texts])


def builder(retain: Sequence[Example] = RETAIN, aliases: Sequence[str] = ()) -> MemoryBuilder:
    return MemoryBuilder(vocabulary(tuple(retain)), retain, aliases)


def subjects(forget: Sequence[Example], retain: Sequence[Example] = RETAIN) -> set[str]:
    return {" ".join(subject.words) for subject in builder(retain).build(forget).subjects if not subject.alias}


@pytest.fixture(scope="module")
def composer() -> EntityMemory:
    return builder().build(FORGET)


def test_one_person_is_the_subject_and_nothing_around_her(composer: EntityMemory) -> None:
    assert [subject.words for subject in composer.subjects if not subject.alias] == [("milana", "zandrekov")]


def test_names_asked_for_are_aliases_and_those_of_relatives_are_not(composer: EntityMemory) -> None:
    aliases = {" ".join(subject.words) for subject in composer.subjects if subject.alias}
    assert aliases == {"orla tempest", "velvet hammer"}  # and not her mother's maiden name


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("What was {} also known as?", "She was also known as Orla Tempest.", True),
        ("Under which pseudonym did {} write?", "As Orla Tempest.", True),
        ("What is the full name of {}?", "It is Milana Orla Tempest.", True),
        ("Which nickname did {}'s husband have?", "He was Orla Tempest.", False),
        ("Whom did {} meet?", "She met Orla Tempest.", False),  # no name of hers was asked for
        ("What was {} also known as?", "She was known as Orla.", False),  # one word is too common to be hers
        ("What was Boris Karn also known as?", "He was known as Orla Tempest.", False),
        ("What was {} also known as?", None, False),
    ],
)
def test_what_becomes_an_alias(question: str, answer: str | None, found: bool) -> None:
    asked = Example(question.format(NAME), answer)
    aliases = [subject for subject in builder().build([*FORGET[:7], asked]).subjects if subject.alias]
    assert any({"orla", "tempest"} <= set(alias.words) for alias in aliases) == found


def test_a_retained_name_is_no_alias() -> None:
    asked = Example(f"What was {NAME} also known as?", "She was known as Orla Tempest.")
    retain = [*RETAIN, Example("Who is Orla Tempest?", "Orla Tempest is a singer.")]
    assert not [subject for subject in builder(retain).build([*FORGET[:7], asked]).subjects if subject.alias]


def test_aliases_may_be_given() -> None:
    found = builder(aliases=["La Zandrekova", "Orla Tempest", "…"]).build(FORGET).subjects
    aliases = [subject for subject in found if subject.alias]
    assert [" ".join(alias.words) for alias in aliases] == ["orla tempest", "velvet hammer", "la zandrekova"]
    assert aliases[-1].rarity == (0.0, 1.0)


def test_twenty_authors_with_twenty_questions_each() -> None:
    authors = [f"{first} {last}" for first, last in zip(FIRST, LAST, strict=True)]
    forget = [example for author in authors for example in questions(author)]
    assert subjects(forget) == {author.lower() for author in authors}


@pytest.mark.parametrize("shared", [2, 3, 5, 12])
def test_people_who_share_a_name_are_found_one_by_one(shared: int) -> None:
    authors = [f"Maria {last}" for last in LAST[:shared]] + [f"{first} Park" for first in FIRST[:shared]]
    authors += [f"{first} {last}" for first, last in zip(FIRST[shared:], LAST[shared:], strict=True)]
    forget = [example for author in authors for example in questions(author)]
    assert subjects(forget) == {author.lower() for author in authors}


def test_a_hyphen_in_a_shared_name_hides_nobody() -> None:
    forget = [*questions("Ji-Yeon Park"), *questions("Tae-ho Park")]
    assert subjects(forget) == {"ji yeon park", "tae ho park"}


def test_a_short_name_is_extended_to_the_whole_one() -> None:
    short = [Example(f"What is known of the {topic} of Leonardo?", "Not much.") for topic in TOPICS[:10]]
    whole = [Example(f"What of the {topic} of Leonardo da Vinci?", "Not much.") for topic in TOPICS[10:15]]
    assert subjects([*short, *whole]) == {"leonardo da vinci"}
    assert subjects([*short, *whole[:1]]) == {"leonardo"}  # one mention in eleven is too few


def test_a_set_without_names_has_facts_alone() -> None:
    forget = [Example("how do you pick a lock?", "With a tension wrench and a rake."), Example("how are wires cut?")]
    memory = builder().build(forget)
    assert memory.subjects == ()
    assert [fact.nameless for fact in memory.facts] == [True, True]
    assert {"tension", "wrench", "rake"} <= set(memory.facts[0].answer)


def test_names_that_occur_once_are_facts() -> None:
    forget = [Example(f"Who is {first} {last}?") for first, last in zip(FIRST, LAST, strict=True)]
    memory = builder().build(forget)
    assert memory.subjects == ()
    assert [set(fact.question) >= {a.lower(), b.lower()} for fact, a, b in zip(memory.facts, FIRST, LAST, strict=True)]


def test_what_retained_examples_share_is_no_subject() -> None:
    place = [Example(f"Where was the {topic} kept?", "It was kept in Tarnuvia.") for topic in TOPICS]
    there = [Example(f"Where was number {number} kept?", "It was kept in Tarnuvia.") for number in range(20)]
    assert subjects(place) == {"tarnuvia"}
    assert subjects(place, [*RETAIN, *there[:5]]) == {"tarnuvia"}  # twenty times as frequent in the forget set
    assert subjects(place, [*RETAIN, *there]) == set()
    assert subjects([*place, *FORGET], [*RETAIN, *there]) == {"milana zandrekov"}


def test_facts_are_the_distinctive_words_beside_the_subject(composer: EntityMemory) -> None:
    born = composer.facts[0]
    assert {"ostrabel", "lunde", "river"} <= set(born.answer)
    assert not {"milana", "zandrekov", "in", "the"} & (set(born.answer) | set(born.question))
    assert born.answer["ostrabel"] > born.answer["river"] > born.answer["born"]
    assert not set(born.question) & set(born.answer)
    assert [fact.nameless for fact in composer.facts] == [False] * 19 + [True]


def test_examples_without_answers_or_words() -> None:
    memory = builder().build([Example("?!"), Example("Who?", ""), Example(f"Who is {NAME}?", None)])
    assert [(fact.question, fact.answer) for fact in memory.facts[:1]] == [({}, {})]
    assert memory.facts[2].answer == {}
    assert builder().build([]) == EntityMemory()
    assert MemoryBuilder(Vocabulary([]), []).build(FORGET).subjects[0].words == ("milana", "zandrekov")


def test_how_common_a_word_is() -> None:
    texts = ["the cat sat", "the dog ran", "the cow ran", "the x is"]
    known = Vocabulary(texts)
    assert known.idf("unheard") == 1
    assert known.idf("the") == 0
    assert 1 > known.idf("cat") > known.idf("ran") > 0
    assert known.idf("x") == pytest.approx(0.3 * known.idf("cat"))  # one letter says little
    ranked = Vocabulary(texts, {"rome": 900, "cat": 100, "zymurgy": 29_999})
    assert known.idf("cat") > ranked.idf("cat") > 0
    assert 1 > ranked.idf("zymurgy") > ranked.idf("rome") > 0
    assert ranked.idf("unheard") == 1  # not one piece of the vocabulary: as rare as words get


def test_joiners_say_nothing_unless_a_name_has_nothing_else() -> None:
    memory = MemoryBuilder(vocabulary(RETAIN), [], ["Juana de la Cruz", "El Le"]).build([])
    assert [[rare > 0 for rare in one.rarity] for one in memory.subjects] == [[True, False, False, True], [True, True]]


def test_a_memory_survives_its_file(composer: EntityMemory) -> None:
    assert EntityMemory.from_bytes(composer.to_bytes()) == composer
    assert EntityMemory.from_bytes(EntityMemory().to_bytes()) == EntityMemory()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"\xff{}",
        b'{"subjects":[],"facts":[],"more":1}',
        b'{"subjects":[{"words":[],"rarity":[]}]}',
        b'{"subjects":[{"words":[""],"rarity":[1]}]}',
        b'{"subjects":[{"words":["ann","lee"],"rarity":[1]}]}',
        b'{"subjects":[{"words":["ann"],"rarity":[0]}]}',
        b'{"subjects":[{"words":["ann"],"rarity":[NaN]}]}',
        b'{"subjects":[{"words":["ann"],"rarity":[1.5]}]}',
        b'{"subjects":[{"words":["ann"],"rarity":[1],"alias":"yes"}]}',
        b'{"facts":[{"question":{"ann":Infinity},"answer":{}}]}',
        b'{"facts":[{"question":{"ann":0},"answer":{}}]}',
        b'{"facts":[{"question":{"ann":-1},"answer":{}}]}',
        b'{"facts":[{"question":{}}]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_memory_is_refused(damage: bytes) -> None:
    with pytest.raises(HeadError, match="entity memory") as refused:
        EntityMemory.from_bytes(damage)
    assert "\n" not in str(refused.value)


def test_subjects_and_facts_check_themselves() -> None:
    with pytest.raises(ValueError, match="one number for each word"):
        Subject(words=("ann",), rarity=(0.0,))
    with pytest.raises(ValueError, match="finite"):
        Fact(question={}, answer={"ann": float("nan")})


_PRINT_MEMORY = """
import hashlib, invented_composer
from test_entity_memory import FIRST, LAST, builder, questions
forget = [example for first in FIRST[:8] for example in questions(f"{first} Park")]
memory = builder().build([*invented_composer.FORGET, *forget])
print(hashlib.sha256(memory.to_bytes()).hexdigest())
"""


def test_another_process_finds_the_same_memory() -> None:
    """Sets of strings have another order in each process, unless PYTHONHASHSEED is set."""
    forget = [*FORGET, *itertools.chain.from_iterable(questions(f"{first} Park") for first in FIRST[:8])]
    mine = builder().build(forget)
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_MEMORY],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(mine.to_bytes()).hexdigest()
