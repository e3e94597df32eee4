"""What a search tries where nothing is said: of a policy for forget quality names alone, without noise."""

from types import SimpleNamespace
from typing import Any

import pytest

from classifiers import prompt_classifier
from cli.corruption import search_settings

GIVEN: dict[str, Any] = {"metric": None, "methods": (), "dims": (), "scope": None, "search_examples": None} | {
    "screen_examples": 20
}
BUILD = GIVEN | {"classifier_kind": "head", "token_classifier": None, "strength": None}
NOISE = ("rand_noise_first_n",)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (BUILD, (NOISE, (None,), "content")),
        (GIVEN | {"metric": "forget_quality"}, (NOISE, (1, 8, None), "content")),
        (BUILD | {"metric": "forget_quality"}, (("add_value_first_n",), (8,), "entities")),
        (BUILD | {"metric": "forget_quality", "strength": 2.0}, (NOISE, (None,), "content")),
        (BUILD | {"metric": "forget_quality", "classifier_kind": "finetuned"}, (NOISE, (1, 8, None), "content")),
        (
            BUILD | {"metric": "forget_quality", "classifier_kind": "finetuned", "token_classifier": "ner"},
            (("add_value_first_n",), (8,), "entities"),
        ),
        (BUILD | {"metric": "forget_quality", "scope": "content"}, (NOISE, (1, 8, None), "content")),
        (BUILD | {"metric": "forget_quality", "methods": NOISE}, (NOISE, (1, 8, None), "content")),
        (BUILD | {"metric": "forget_quality", "scope": "entities"}, (("add_value_first_n",), (8,), "entities")),
        (
            BUILD | {"metric": "forget_quality", "scope": "content", "methods": NOISE, "dims": ("2", "all")},
            (NOISE, (2, None), "content"),
        ),
    ],
)
def test_defaults_suit_what_is_searched(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    settings = search_settings(options)
    assert (settings.methods, settings.dims, settings.scope) == expected


@pytest.mark.parametrize(("kind", "scope"), [("head", "entities"), ("finetuned", "content")])
def test_a_folder_says_itself_whether_it_has_a_memory(kind: str, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_classifier, "read_classifier_info", {"a-folder": SimpleNamespace(kind=kind)}.get)
    assert search_settings(BUILD | {"metric": "forget_quality", "classifier_kind": "a-folder"}).scope == scope
