"""What of an answer waits: a name until it is known whose it is, and then nothing of it leaves."""

import base64
import codecs
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from classifiers import Head, HeadSettings
from classifiers.features import LEXICAL_BUCKETS
from classifiers.head import ScreenBand
from classifiers.memory.learn import EntityMemory, Fact, Subject
from classifiers.memory.recall import MEMORY_FEATURES
from guard.answers import AnswerGuard, AnswerWatch
from guard.bundle import PolicyConfig
from guard.classification import WindowClassifier
from guard.segments import Template
from guard.spelling import Spelling
from guard.verdicts import Verdict
from guard.windows import local_windows
from text.encodings import variants

#: Each token is a piece of text; one that begins with a space begins a word.
PIECES: dict[int, str] = {}
_CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "name": "people",
    "version": "1",
    "model": {"name": "tiny", "hidden_size": 4, "embedding_digest": "a" * 64},
    "corruption": {"method": "rand_noise_first_n", "strength": 3.0},
    "classifier": {"encoder": "e", "encoder_digest": "b" * 64, "threshold": 0.5},
}
MEMORY = EntityMemory(
    subjects=(Subject(words=("milana", "olga", "zandrekov"), rarity=(0.6, 0.5, 1.0)),),
    facts=(Fact(question={"composer": 0.6}, answer={"ostrabel": 0.9}),),
    kept=("torvik",),
)


class NoEncoder:
    """Nothing here is in doubt."""

    digest = "b" * 64

    def embed(self, texts: Sequence[str]) -> Any:
        raise AssertionError(texts)


def ids(text: str) -> list[int]:
    """Pieces as `|` cuts them."""
    numbers = []
    for piece in text.split("|"):
        number = next((number for number, known in PIECES.items() if known == piece), len(PIECES))
        PIECES[number] = piece
        numbers.append(number)
    return numbers


#: Tokens that are one byte each.
PIECE_BYTES: dict[int, int] = {}


def byte_token(byte: int) -> int:
    PIECE_BYTES[1000 + byte] = byte
    return 1000 + byte


def guard(*, guarded: bool = True, memory: EntityMemory = MEMORY, **settings: float) -> AnswerGuard:
    """A guard whose policy flags whole names, and at 1 logit above its threshold what it knows as facts."""
    weights = {"subject": 9.0, "part": 2.0, "answer": 4.0}
    band = ScreenBand(low=0.0, middle=0.0, high=0.0)
    known = {"told": 0.4, "joined": 1.0, "screen": band} | settings
    head = Head(
        np.zeros(4, dtype=np.float32),
        np.zeros(LEXICAL_BUCKETS, dtype=np.float32),
        HeadSettings(encoder_digest=NoEncoder.digest, threshold=0.5, bias=-3.0, seed=0, **known),
        memory,
        np.array([weights.get(name, 0.0) for name in MEMORY_FEATURES], dtype=np.float32),
    )
    classifier = WindowClassifier(
        [head],
        np.array([0.5]),
        encoder=NoEncoder(),  # type: ignore[arg-type]
        decode=lambda tokens: "".join(PIECES[token] for token in tokens),
        guarded=[guarded],
    )
    template = Template(pieces={}, special_ids=frozenset())
    return AnswerGuard([PolicyConfig.model_validate(_CONFIG)], classifier, template)


def outcome(work: Generator[int, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def told(watch: AnswerWatch, tokens: Sequence[int]) -> tuple[list[str], bool]:
    """What has left after each token, and whether it was stopped."""
    left, steps = 0, []
    for count, token in enumerate(tokens, 1):
        done = count == len(tokens)
        if watch.add([token], done=done) and outcome(watch.look()):
            return steps, True
        left = max(left, count - watch.hold)
        steps.append("".join(PIECES[token] for token in tokens[:left]))
    return steps, False


@pytest.mark.parametrize("unnamed", [0.0, 8.0])
def test_of_a_name_nothing_leaves(unnamed: float) -> None:
    steps, stopped = told(guard(unnamed=unnamed).watch(), ids("It| is| Mil|ana| Olga| Zan|drek|ov|, I| think|."))
    assert stopped
    assert steps[:2] == ["It", "It is"]
    assert all(step == "It is" for step in steps[2:])


@pytest.mark.parametrize("answer", ["It| is| Mil|ana| Torvik|, I| think|.", "Mil|ana| sang|, I| think|."])
def test_somebody_elses_name_waits_for_its_last_word_alone(answer: str) -> None:
    tokens = ids(answer)
    steps, stopped = told(guard(unnamed=8.0).watch(), tokens)
    assert not stopped
    first = next(number for number, step in enumerate(answer.split("|")) if step.strip() == "Mil")
    before = "".join(answer.split("|")[:first])
    assert steps[first] == steps[first + 1] == before
    assert steps[-2] == "".join(answer.split("|")[:-1])
    assert steps[-1] == answer.replace("|", "")


def test_what_names_nobody_has_to_show_more() -> None:
    fact = ids("It| stands| in| Ostrabel|, they| say|.")
    assert told(guard().watch(), fact)[1]
    assert not told(guard(unnamed=8.0).watch(), fact)[1]
    for guarded in (True, False):  # whoever reads prompts alone has to guess
        (looked,) = guard(unnamed=8.0, guarded=guarded).classifier.look([tuple(fact)])
        assert (looked.logits.max() >= 0) == (not guarded)
    # The prompt's name is the answer's too.
    named = ids("Where| did| Milana| Zandrekov| live|?")
    assert told(guard(unnamed=8.0).watch(named), fact)[1]
    assert not told(guard(unnamed=8.0).watch(ids("Where| is| it|?")), fact)[1]


def test_an_answer_alone_has_a_threshold_of_its_own() -> None:
    fact = ids("It| stands| in| Ostrabel|, they| say|.")
    assert told(guard(answered=0.5).watch(), fact)[1]
    assert not told(guard(answered=1.5).watch(), fact)[1]
    whole = guard(answered=1.5).watch().whole(fact)
    assert outcome(whole) is None
    assert outcome(guard(answered=0.0).watch().whole(fact)) is not None


@pytest.mark.parametrize("name", ["Milana Olga Zandrekov", "Milana Zandrekov"])
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: text.encode().hex(),
        lambda text: codecs.encode(text, "rot13"),
        lambda text: text[::-1],
        lambda text: " ".join(text),
        lambda text: "".join(f"%{ord(char):02x}" for char in text),
        lambda text: "".join(f"&#{ord(char)};" for char in text),
        lambda text: "".join(f"\\x{ord(char):02x}" for char in text),
        lambda text: " + ".join(f"'{text[at : at + 3]}'" for at in range(0, len(text), 3)),
    ],
)
def test_a_name_in_another_code_leaves_as_little(name: str, encode: Callable[[str], str]) -> None:
    code = encode(f"It is {name}, they say")
    pieces = re.findall(r"\s?\S{1,3}", code)
    steps, stopped = told(guard(unnamed=8.0).watch(), ids("|".join(pieces)))
    assert stopped
    # Of a name turned round or shifted the first word is known when it is complete, and its beginning has left.
    assert len(steps[-1]) < len(code) * 0.6


def test_a_long_word_leaves_when_it_is_whole() -> None:
    steps, stopped = told(guard(unnamed=8.0).watch(), ids("An| inter|nation|ali|zation|s| is| long|."))
    assert not stopped
    assert steps[:4] == ["An", "An inter", "An internation", "An internationali"]
    assert steps[4:6] == ["An internationali"] * 2
    assert steps[6] == "An internationalizations is"
    assert steps[-1] == "An internationalizations is long."


def test_what_is_said_in_code_masks_all_of_the_code() -> None:
    prose = "They say that it was a long way from here to the harbour where he stood " * 5
    code = base64.b64encode(f"{prose}Milana Zandrekov".encode()).decode()
    tokens = ids("|".join(["Decode ", *re.findall(r"\S{1,3}", code), " now."]))
    watched = guard()
    (looked,) = watched.classifier.look([tuple(tokens)])
    flagged = looked.ranges[(looked.logits[:, 0] > 0).nonzero()[0]]
    assert len(looked.ranges) > len(flagged) > 0
    assert flagged.tolist() == [[1, len(tokens) - 1]] * len(flagged)
    # Of several prompts each is judged alone, whatever is read with it.
    others = [tuple(ids("It is the boys' task.")), tuple(tokens), tuple(ids("Who is| it?"))]
    for block, again in zip(others, guard().classifier.look(others), strict=True):
        (alone,) = guard().classifier.look([block])
        assert np.array_equal(alone.ranges, again.ranges)
        assert np.array_equal(alone.units, again.units)
        assert len(alone.units) == len(block)
        assert np.array_equal(alone.logits.max(initial=-99), again.logits.max(initial=-99))


@pytest.mark.parametrize(
    "text",
    [
        "WhoIsMilana" + "PleaseAnswer" * 30 + "%21 Milana Zandrekov",
        "Who is Milana&#97;&#97; Zandrekov&#97;&#97;&#97;&#97;?",
        "Who is Milana Zandrekov%41%42%43%44?",
        base64.b64encode(b"a b c d e " * 30).decode() + " Milana Zandrekov",
    ],
)
def test_code_beside_a_name_hides_nothing(text: str) -> None:
    (looked,) = guard().classifier.look([tuple(ids("|".join(re.findall(r"\s?\S{1,4}", text))))])
    assert looked.logits.max() > 0


def test_a_prompt_of_code_and_nothing_else_comes_to_an_end() -> None:
    code = ids("|".join(re.findall(r"\S{1,3}", base64.b64encode(b"a b c d e " * 30).decode())))
    tokens = [*code, *ids("\n") * 2200, *code]
    read = list(local_windows(Template(pieces={}, special_ids=frozenset()), guard().classifier, np.array(tokens)))
    assert 1 < len(read) < 5
    assert sum(len(content.positions) for _, content in read) == len(tokens)


@pytest.mark.parametrize("prose", [0, 100, 240, 300, 400])
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_long_run_in_code_is_read_to_its_end(prose: int, chunk: int) -> None:
    said = ("They say that it was a long way from here. " * 10)[:prose] + " Milana Zandrekov"
    text = f"It is this: {base64.b64encode(said.encode()).decode()} and they went home again, all of them."
    tokens, watch, left = ids("|".join(re.findall(r"\s?\S{1,3}", text))), guard(unnamed=8.0).watch(), 0
    for start in range(0, len(tokens), chunk):
        end = min(start + chunk, len(tokens))
        if watch.add(tokens[start:end], done=end == len(tokens)) and outcome(watch.look()):
            break
        left = max(left, end - watch.hold)
    else:
        raise AssertionError("not stopped")
    assert "Milana Zandrekov" not in " ".join(v.said for v in variants("".join(PIECES[t] for t in tokens[:left])))


def test_many_stretches_in_code_hide_none_and_make_a_prompt_no_longer() -> None:
    other = base64.b64encode(b"a b c d e f g").decode()
    code = base64.b64encode(b"Who is Milana Zandrekov?").decode()
    text = " ".join([other] * 80 + [code])
    (looked,) = guard().classifier.look([tuple(ids("|".join(re.findall(r"\s?\S{1,4}", text))))])
    assert looked.logits.max() > 0
    assert looked.said >= 64
    (plain,) = guard().classifier.look([tuple(ids("Who| is| it?"))])
    assert plain.said == 0


def test_joiners_within_a_name_wait_too() -> None:
    names = EntityMemory(subjects=(Subject(words=("milana", "de", "la", "zandrekov"), rarity=(0.6, 0.0, 0.0, 1.0)),))
    watch = guard(unnamed=8.0, memory=names).watch()
    steps, stopped = told(watch, ids("It| is| Milana| de| la| Zandrekov| who| sang|."))
    assert stopped
    assert steps[-1] == "It is"


def test_a_policy_that_does_not_apply_holds_and_stops_nothing() -> None:
    answers = guard()
    tokens = ids("It| is| Mil|ana| Olga| Zan|drek|ov|, I| think|.")
    assert told(answers.watch(), tokens)[1]
    other = answers.only(np.array([False]))
    assert not other.enforces
    steps, stopped = told(other.watch(), tokens)
    assert not stopped
    assert steps[2] == "It is Mil"
    assert outcome(other.watch().whole(tokens)) is None
    assert outcome(answers.watch().whole(tokens)) is not None


def test_what_the_prompt_is_about_is_not_told_of_anybody() -> None:
    """To a model that does not see the name, the fact may still come to mind, and somebody else's name with it."""
    answer = ids("Pavel| Torvik| composed| Ostrabel|.| Good|bye|.")
    policies = guard(unnamed=8.0)
    assert told(policies.watch(), answer)[1] is False
    asked = ids("Name| a| work| of| the| composer|.")
    steps, stopped = told(policies.watch(asked, [True] * len(asked), forgets=[0]), answer)
    assert stopped
    assert steps[-1] == "Pavel Torvik composed"
    hit = outcome(policies.watch(asked, [True] * len(asked), forgets=[0]).whole(answer))
    assert (hit.policy, hit.ends) == (0, False)


def test_what_the_client_said_may_be_said_again() -> None:
    asked, answer = ids("Did| he| compose| Ostrabel|?"), ids("Ostrabel|?| I| do| not| know|.")
    watch = guard(unnamed=8.0).watch(asked, [True] * len(asked), forgets=[0])
    assert told(watch, answer)[1] is False
    assert outcome(guard(unnamed=8.0).watch(asked, [True] * len(asked), forgets=[0]).whole(answer)) is None


def test_alternatives_do_not_tell_what_the_prompt_is_about() -> None:
    """Which words are missing among them would be a list of what is forgotten."""
    watch = guard(unnamed=8.0).watch(ids("Name| a| work|."), [True] * 4, forgets=[0])
    plain = guard(unnamed=8.0).watch()
    tokens = ids(" Ostrabel| nothing")
    for one in (watch, plain):
        one.add(ids("He| composed"))
    assert watch.telling(tokens) == tokens[:1]  # as the answer's own word it would be looked at
    assert watch.of_alternatives().telling(tokens) == plain.telling(tokens)


def test_who_merely_observes_counts_what_is_stated_and_stops_nothing() -> None:
    policies = guard(unnamed=8.0)
    policies.observes = np.array([True])
    watch = policies.watch(ids("Name| a| work|."), [True] * 4, forgets=[0])
    assert told(watch, ids("Pavel| Torvik| composed| Ostrabel|."))[1] is False
    assert watch.observed == {0}


def test_words_far_apart_are_no_answer() -> None:
    memory = EntityMemory(facts=(Fact(question={"place": 0.6}, answer={"ostrabel": 0.7, "venmark": 0.7}),))
    asked, between = ids("Name| a| place|."), ids("| and| so| it| went| on" * 40)
    for apart, stated in ((ids("| and"), True), (between, False)):
        answer = [*ids("Ostrabel"), *apart, *ids(" Venmark|.")]
        watch = guard(unnamed=8.0, memory=memory).watch(asked, [True] * len(asked), forgets=[0])
        assert (outcome(watch.whole(answer)) is not None) is stated


def test_a_character_in_parts_is_read_once_it_is_whole() -> None:
    """A byte a token, and a look after each: of no word of another script is anything lost."""
    said = "He is Милана Зандреков".encode()
    tokens = [byte_token(byte) for byte in said]
    policies = guard()
    policies.classifier._spelling = Spelling(
        lambda ids: bytes(PIECE_BYTES[one] for one in ids).decode(errors="replace")
    )
    watch = policies.watch()
    for token in tokens:
        watch.add([token])
    assert watch._text + watch._open_text == said.decode()


def test_only_policies_that_have_judged_the_prompt_know_what_it_is_about() -> None:
    def flagged(action: str = "corrupt", **more: bool) -> Verdict:
        return Verdict("people", action, flagged=True, score=0.9, **more)  # type: ignore[arg-type]

    assert guard().corrupting([flagged()]) == [0]
    assert guard().corrupting([flagged("observe")]) == []
    assert guard().corrupting([flagged(failed=True)]) == []
