"""What a search tries where nothing is said: of a policy for forget quality names alone, without noise."""

from typing import Any

import pytest

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
        (
            BUILD | {"metric": "forget_quality", "scope": "content", "methods": NOISE, "dims": ("2", "all")},
            (NOISE, (2, None), "content"),
        ),
    ],
)
def test_defaults_suit_what_is_searched(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    settings = search_settings(options)
    assert (settings.methods, settings.dims, settings.scope) == expected
