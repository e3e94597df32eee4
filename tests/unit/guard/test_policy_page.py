"""A policy on a page: what a build's report holds stands there in words, and nothing in it is read as markup."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from corruption import CorruptionSpec
from guard import ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig
from guard.page import html_of, page_of, summary_of

REPORT: dict[str, Any] = {
    "classifier": {
        "forget_examples": 48,
        "retain_examples": 500,
        "general_prompts": 2204,
        "cross_fitted": {
            "missed": 10,
            "positives": 100,
            "recall": 0.9,
            "false_positives": 1,
            "negatives": 1000,
            "false_positive_rate": 0.001,
        },
    },
    "misjudged": {"forget": {"examples": 48, "missed": [7]}, "retain": {"examples": 500, "flagged": []}},
    "search": {
        "best": {"value": 0.041},
        "objective": {"metric": "answer_probability"},
        "reached": False,
        "uncorrupted_value": 0.999,
        "retained_value": 0.0,
        "reason": "no strength up to 100",
    },
    "effect": {
        name: {
            "metric": "rouge_l",
            "unguarded": 1.0,
            "guarded": guarded,
            "guarded_interval": [0.0, 1.0],
            "flagged": 48,
            "examples": 48,
        }
        for name, guarded in (("forget", 0.0), ("retain", 0.97))
    },
}
NAME = "<script>alert(1)</script>"


@pytest.fixture
def bundle(tmp_path: Path) -> PolicyBundle:
    config = PolicyConfig(
        schema_version=1,
        name="people",
        version="3",
        model=ModelConfig(name=NAME, hidden_size=8, embedding_digest="a" * 64),
        corruption=CorruptionSpec(method="rand_noise_first_n", strength=3.0),
        classifier=ClassifierConfig(
            encoder="e", encoder_digest="b" * 64, threshold=0.5, calibration={"guarantee": "at most 1 %"}
        ),
        provenance={"versions": {"eco-gateway": "1"}},
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "roc.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return PolicyBundle(path=tmp_path, digest="c" * 64, config=config, report=REPORT)


def test_the_page_says_what_was_measured(bundle: PolicyBundle) -> None:
    lines = page_of(bundle)
    assert 10 <= len(lines) <= 25
    page = " ".join(" ".join(lines).split())
    for text in (
        "48 examples to forget, 500 to keep",
        "misses 10 of 100 to forget (10.0%) and flags 1 of 1000 to keep (0.10%)",
        "misses 1 of 48 to forget and flags 0 of 500 to keep",
        "0.999 without corruption, 0.041 with it; a model that never learned: 0.000 (not reached",
        "retain set: rouge_l 1.000 without the policy, 0.970 with it",
        "at most 1 %",
    ):
        assert text in page


@pytest.mark.parametrize(
    ("values", "said"),
    [([0.9, 0.4, 0.7], "p = 0.7 (least of 3 noise draws that"), ([0.758], "p = 0.76 (without noise: the same under")],
)
def test_a_search_for_forget_quality_tells_its_test(bundle: PolicyBundle, values: list[float], said: str) -> None:
    quality = {"reference": "retain model", "examples": 400, "p_values": values}
    search = REPORT["search"] | {"objective": {"metric": "forget_quality"}, "forget_quality": quality}
    page = " ".join(" ".join(page_of(dataclasses.replace(bundle, report=REPORT | {"search": search}))).split())
    assert f"TOFU's test against the retain model, 400 questions: {said}" in page
    assert "forget_quality" not in page


@pytest.mark.parametrize("missing", ["classifier", "misjudged", "search", "effect"])
@pytest.mark.parametrize("value", [None, 3, {}, {"forget": None}])
def test_a_report_without_a_part_is_a_page_without_it(bundle: PolicyBundle, missing: str, value: Any) -> None:
    whole = len(page_of(bundle))
    lesser = dataclasses.replace(bundle, report=REPORT | {missing: value})
    assert len(page_of(lesser)) < whole
    assert summary_of(lesser).startswith("Policy people makes")


def test_the_html_stands_alone_and_quotes_what_it_shows(bundle: PolicyBundle) -> None:
    page = html_of(bundle)
    assert NAME not in page
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    sources = [str(attributes["src"]) for tag, attributes in tags if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/svg+xml;base64,")
    assert "48 examples to forget" in page
    assert "fall from 1.00 to 0.00" in page
