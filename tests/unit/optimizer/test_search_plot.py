"""The picture of a search."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from analytic_objective import AnalyticObjective, bowl, falling

from optimizer.errors import SearchError
from optimizer.search.plot import plot_search
from optimizer.search.result import SearchResult
from optimizer.search.search import search_corruption
from optimizer.search.space import SearchSettings, SearchSpace


@pytest.fixture(scope="module")
def result() -> SearchResult:
    def metric(spec, seed):  # type: ignore[no-untyped-def]
        return 3.0 + seed if spec.strength is None else bowl((0.1, 3.0))(spec, seed) + 0.3 * seed

    space = SearchSpace(methods=("rand_noise_first_n", "shuffle"), dims=(2,), hidden_size=8)
    return search_corruption(AnalyticObjective(metric, 0.21), space, SearchSettings(vector_steps=3))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_search_gives_the_same_bytes(tmp_path: Path, result: SearchResult, ending: str) -> None:
    import matplotlib as mpl

    first, again = tmp_path / f"a.{ending}", tmp_path / "folder" / f"b.{ending}"
    before = dict(mpl.rcParams.items())
    plot_search(result, first)
    plot_search(result, again)
    assert dict(mpl.rcParams.items()) == before
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_measured_is_in_the_picture(tmp_path: Path, result: SearchResult) -> None:
    plot_search(result, tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    ET.fromstring(text)  # noqa: S314
    words = [line.strip()[5:-4] for line in text.splitlines() if line.strip().startswith("<!-- ")]
    for wanted in (
        "retained value 0.21",
        "tolerance ± 0.02",
        "rand_noise_first_n on 2 dimensions",
        "rand_noise_first_n on 2 dimensions, one strength each",
        "shuffle",
        "nearest, not within the tolerance",
    ):
        assert wanted in words
    assert "<dc:date>" not in text


def test_methods_without_strength_alone_and_many_candidates_are_drawn(tmp_path: Path) -> None:
    flat = AnalyticObjective(lambda spec, seed: 0.5, 0.5)
    for number, methods in enumerate([("shuffle",), ("rand_noise_first_n", "add_value_first_n", "sub_value_first_n")]):
        space = SearchSpace(methods=methods, dims=(1, 2, 3, 4, 5, 6), hidden_size=8)
        found = search_corruption(flat, space)
        plot_search(found, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_another_ending_is_refused_and_an_old_picture_survives_a_failure(tmp_path: Path, result: SearchResult) -> None:
    with pytest.raises(SearchError, match=r"search.pdf: a plot is a .png or a .svg file"):
        plot_search(result, tmp_path / "search.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchError, match="cannot be written"):
        plot_search(result, tmp_path / "file" / "search.png")


def test_what_a_part_said_is_drawn_apart(tmp_path: Path) -> None:
    space = SearchSpace(dims=(2,), hidden_size=8)
    part = AnalyticObjective(falling(2.0), 0.3)
    searched = search_corruption(AnalyticObjective(falling(2.5), 0.3, screened=part), space)
    plot_search(searched, tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    assert "<!-- rand_noise_first_n on 2 dimensions, on a part of the examples -->" in text
    assert "<!-- rand_noise_first_n on 2 dimensions -->" in text
