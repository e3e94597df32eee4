import math

import numpy as np
import pytest
from processor_time import seconds_of

from classifiers.memory.facts import FACT_FEATURES, FactIndex
from classifiers.memory.learn import EntityMemory, Fact
from classifiers.memory.parts import FactParts
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from text.reading import read_all

BAKER = Fact(question={"born": 0.4}, answer={"lunde": 0.9, "baker": 0.8})
RIVER = Fact(question={"river": 0.6}, answer={"ostra": 0.7}, nameless=True)


def features(facts: list[tuple[int, Fact]], text: str, memories: int = 1) -> dict[int, dict[str, float]]:
    reading = read_all([text])
    parts = [FactParts([fact for owner, fact in facts if owner == memory]) for memory in range(memories)]
    texts, owners, rows = FactIndex(parts).features(reading, reading.word_windows)
    assert not texts.any()
    return {
        int(owner): dict(zip(FACT_FEATURES, row, strict=True)) for owner, row in zip(owners, rows.tolist(), strict=True)
    }


def test_the_measures_of_one_fact() -> None:
    found = features([(0, BAKER)], "lunde born lunde elsewhere")[0]
    assert found["answer"] == pytest.approx(math.sqrt(0.81 / (0.81 + 0.64)) * 0.9)
    assert found["example"] == pytest.approx(math.sqrt(0.97 / (0.97 + 0.64)) * 0.97 / 1.5)
    assert found["breadth"] == pytest.approx(1 - math.exp(-0.81 / 2))
    assert found["linked"] == pytest.approx(0.3)  # a repeated word counts once
    assert found["described"] == 0


def test_of_several_facts_the_best_counts_and_breadth_adds_up() -> None:
    both = features([(0, BAKER), (0, RIVER)], "baker lunde ostra river")[0]
    assert both["answer"] == pytest.approx(1)
    assert both["linked"] == pytest.approx(0.7)
    assert both["described"] == pytest.approx(0.3)  # of the one whose prompt names nobody
    assert both["breadth"] == pytest.approx(1 - math.exp(-(0.81 + 0.64 + 0.49) / 2))


def test_a_word_of_several_facts_counts_once_for_the_breadth_of_a_memory() -> None:
    again = Fact(question={}, answer={"lunde": 0.9})
    assert features([(0, BAKER), (0, again)], "lunde")[0]["breadth"] == pytest.approx(1 - math.exp(-0.81 / 2))


def test_memories_are_told_apart() -> None:
    found = features([(1, BAKER), (3, RIVER), (3, BAKER)], "ostra", memories=5)
    assert list(found) == [3]
    assert list(features([(1, BAKER), (3, BAKER)], "lunde", memories=5)) == [1, 3]
    assert features([(1, BAKER)], "nothing of it", memories=5) == {}
    assert features([], "lunde", memories=0) == {}


def test_a_memory_scores_alike_in_any_company() -> None:
    """And in any company of texts: the numbers must not tell."""
    facts = [Fact(question={f"q{i}": 0.5}, answer={f"a{i}": 0.9, "shared": 0.6}) for i in range(40)]
    memories = [EntityMemory(facts=tuple(facts[i : i + 4])) for i in range(0, 40, 4)]
    together = MemoryIndex(memories)
    for text in ("q1 a1", "a1 a5 shared", "shared q39 a38", "who q1 a1 shared"):
        found = together.features(text)
        for number, memory in enumerate(memories):
            alone = MemoryIndex([memory]).features(text).get(0, np.zeros(len(MEMORY_FEATURES)))
            assert np.allclose(found.get(number, np.zeros(len(MEMORY_FEATURES))), alone, atol=1e-7)


def test_a_thousand_memories_of_the_same_facts_cost_milliseconds() -> None:
    facts = tuple(Fact(question={f"q{i}": 0.5}, answer={f"a{i}": 0.9, "shared": 0.6}) for i in range(20))
    index = MemoryIndex([EntityMemory(facts=facts)] * 1000)
    text = "shared q1 a1 q2 a2 q3 a3 a4 a5"
    found = index.features(text)
    assert min(seconds_of(lambda: index.features(text)) for _ in range(3)) < 0.1
    assert len(found) == 1000
    assert len({row.tobytes() for row in found.values()}) == 1
