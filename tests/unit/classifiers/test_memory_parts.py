"""An index that is made anew with what is kept of each memory is the one that would be made of nothing."""

import gc
import random

import numpy as np

from classifiers.memory import parts
from classifiers.memory.learn import EntityMemory, Fact, Subject
from classifiers.memory.misspelt import Misspelt, form_codes
from classifiers.memory.parts import parts_of
from classifiers.memory.postings import Keys, Postings
from classifiers.memory.recall import MemoryIndex
from text.reading import read_each

FIRST, LAST = ("milana", "wendell", "braquo", "keltor", "mizan"), ("zandrekov", "fairlocke", "thinarsel", "shiquomi")
WORDS = ("ostrabel", "narburgh", "finch", "composer", "baker", "velvet", "lunde", "pogruya")


def memory(rng: random.Random) -> EntityMemory:
    subjects = tuple(
        Subject(words=(rng.choice(FIRST), "van", rng.choice(LAST)), rarity=(0.6, 0.0, rng.choice((0.8, 1.0))))
        for _ in range(rng.randrange(3))
    )
    facts = tuple(
        Fact(
            question={word: rng.choice((0.3, 0.6)) for word in rng.sample(WORDS, 2)},
            answer={word: rng.choice((0.5, 0.9)) for word in rng.sample(WORDS, rng.randrange(1, 3))},
            nameless=rng.random() < 0.3,
        )
        for _ in range(rng.randrange(4))
    )
    return EntityMemory(subjects=subjects, facts=facts, kept=(rng.choice(LAST),))


def text(rng: random.Random) -> str:
    others = ["Who", "was", "the", "Mílana", "zandrekof", "vokerdnaz", "zvynan", "f.i.n.c.h", "Кто", "Милана"]
    names = [word.capitalize() for word in FIRST + LAST]
    return " ".join(rng.choice((*others, *names, *WORDS)) for _ in range(12))


def told(index: MemoryIndex, texts: list[str]) -> list[bytes]:
    reading, _ = read_each(texts)
    recalled = index.recall(reading)
    shares = [part.tobytes() for one in WORDS + LAST for part in index.shares(one)]
    begun = [part.tobytes() for one in ("zan", "o", "f") for part in index.begun_shares(one)]
    found = [recalled.texts, recalled.memories, recalled.features, index.evidence(reading)]
    return [*(part.tobytes() for part in found), *shares, *begun, repr(list(index.begun_words("f"))).encode()]


def test_after_any_changes_it_is_the_index_of_what_is_there() -> None:
    rng = random.Random(5)  # noqa: S311 - a reproducible choice
    held = [memory(rng) for _ in range(6)]
    for step in range(40):
        change = rng.choice(("add", "change", "remove"))
        place = rng.randrange(len(held) + 1)
        if change == "add" or not held:
            held.insert(place, memory(rng))
        elif change == "change":
            held[place % len(held)] = memory(rng)
        else:
            del held[place % len(held)]
        anew = [EntityMemory.from_bytes(one.to_bytes()) for one in held]
        asks = [rng.choice((0.0, 0.7)) for _ in held]
        texts = [text(rng) for _ in range(4)]
        kept, fresh = (told(MemoryIndex(each, asks, asks), texts) for each in (held, anew))
        assert kept == fresh, (step, change)


def test_what_is_kept_of_a_memory_is_made_once_and_goes_with_it() -> None:
    rng = random.Random(1)  # noqa: S311 - a reproducible choice
    one, same = memory(rng), memory(random.Random(1))  # noqa: S311
    assert parts_of(one) is parts_of(one)
    assert one == same
    assert parts_of(same) is not parts_of(one)
    gc.collect()  # what others left in cycles
    before = len(parts._known)
    del one
    gc.collect()
    assert len(parts._known) == before - 1


def test_a_copy_with_other_subjects_is_not_taken_for_the_memory() -> None:
    one = EntityMemory(subjects=(Subject(words=("milana", "zandrekov"), rarity=(0.6, 1.0)),))
    MemoryIndex([one])
    other = one.model_copy(update={"subjects": (Subject(words=("braquo", "thinarsel"), rarity=(0.6, 1.0)),)})
    assert list(MemoryIndex([other]).features("Braquo Thinarsel")) == [0]
    assert MemoryIndex([other]).features("Milana Zandrekov") == {}


def test_words_share_a_form_with_what_they_are_misspelt_as() -> None:
    words = ["zandrekov", "zandrekof", "lunde", "finch", "van"]
    index = Misspelt(words, *form_codes(words))
    assert set(index.near("zandrekow")) == {"zandrekov", "zandrekof"}
    assert set(index.near("lnde")) == {"lunde"}
    assert set(index.near("vn")) == set()  # so short a word has no other forms
    assert set(index.near("lundes")) == {"lunde"}
    assert set(Misspelt([], *form_codes([])).near("lunde")) == set()


def test_two_forms_of_one_number_are_told_apart() -> None:
    clash = Misspelt(["lunde", "finch"], np.full(2, hash("baker")), np.arange(2))
    assert list(clash.near("baker")) == []


def test_postings_hold_the_largest_or_the_last_value_of_each_owner() -> None:
    keys = Keys.of(["b", "a", "b", "b", "c"])
    owners, values = np.array([1, 0, 0, 1, 2]), np.array([0.9, 0.1, 0.2, 0.3, 0.4])
    assert [part.tolist() for part in Postings.of_owners(keys, owners, values)["b"]] == [[0, 1], [0.2, 0.9]]
    assert [part.tolist() for part in Postings.of_owners(keys, owners, values, last=True)["b"]] == [[0, 1], [0.2, 0.3]]
    some = Postings(keys.among(np.array([1])), np.array([7]))
    assert (list(some), "b" in some, some.get("b"), bool(some)) == (["a"], False, None, True)


def test_a_misspelt_word_is_held_to_each_word_once_however_many_names_have_it() -> None:
    def named(number: int) -> EntityMemory:
        return EntityMemory(subjects=(Subject(words=("christopher", f"x{number}"), rarity=(0.3, 1.0)),))

    index = MemoryIndex([named(number) for number in range(500)])
    near = list(index._names._misspelt.near("chrisxtopher"))
    assert set(near) == {"christopher"}
    assert len(near) <= len("christopher") + 2  # once for each form that both become
    assert index._names.alike(["chrisxtopher"]) == [{"christopher": 0.8}]
