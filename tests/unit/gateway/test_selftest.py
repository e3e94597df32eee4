"""The start-up self-test against engines that keep, or break, what the guard relies on."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from gateway import LaunchError, SelfTestError
from gateway.selftest import derive_scale, run_self_test

VOCAB, WIDTH = 64, 256
SQRT_WIDTH = WIDTH**0.5 + 0.07  # not a power of two


def table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    rows[0] = 0  # padding rows are often zero
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_rows_have_scale_one(dtype: torch.dtype) -> None:
    assert derive_scale(table(), table().to(dtype).float(), dtype) == 1.0
    assert derive_scale(table(dtype), table(dtype).float(), dtype) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_scaled_inside_the_model_give_their_factor(dtype: torch.dtype) -> None:
    """Gemma multiplies by the root of the hidden size, rounded to the model's dtype."""
    factor = torch.tensor(SQRT_WIDTH).to(dtype)
    engine = (table(dtype) * factor).float()
    scale = derive_scale(table(dtype), engine, dtype)
    assert scale == pytest.approx(float(factor), rel=1e-6)
    assert torch.allclose(table(dtype).float() * scale, engine, rtol=0.02)


def swapped(rows: torch.Tensor) -> torch.Tensor:
    rows[[5, 6]] = rows[[6, 5]]
    return rows


def one_entry_off(rows: torch.Tensor) -> torch.Tensor:
    rows[7, 9] += 1.0
    return rows


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "other rows": lambda rows: torch.randn(rows.shape, generator=torch.Generator().manual_seed(4)),
    "two rows swapped": swapped,
    "one entry off": one_entry_off,
    "shifted": lambda rows: rows + 0.5,
    "scaled by position": lambda rows: rows * torch.linspace(1, 2, WIDTH),
    "zero": torch.zeros_like,
    "not a number": lambda rows: rows * float("nan"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("factor", [1.0, SQRT_WIDTH])
def test_rows_that_are_no_multiple_are_refused(name: str, factor: float) -> None:
    engine = WRONG[name](table(torch.bfloat16).float()) * factor
    with pytest.raises(SelfTestError, match="multiple"):
        derive_scale(table(torch.bfloat16), engine, torch.bfloat16)


def test_another_width_is_refused_with_both_widths() -> None:
    with pytest.raises(SelfTestError, match=f"128.*{WIDTH}"):
        derive_scale(table(), table()[:, :128], torch.float32)


# --- the whole test, on a small function in place of a model ------------------------------------------------


class Engine:
    """A deterministic function of the embedded rows, and of whatever else `leak` makes it read."""

    scale = 1.0
    raw_ids = False
    dtype = torch.float32
    engines = 1

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def leak(self, ids: Sequence[int], mask: Sequence[bool] | None) -> float:
        return 0.0

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        return (table(self.dtype)[list(ids)] * self.scale).float()

    def data_parallel_ranks(self, engine: Any) -> range:
        return range(self.engines)

    async def input_rows(self, engine: Any, ids: list[int]) -> tuple[torch.Tensor, bool]:
        return self.embed(ids), self.raw_ids

    async def greedy(
        self,
        engine: Any,
        ids: list[int],
        *,
        max_tokens: int,
        rank: int,
        embeddings: torch.Tensor | None = None,
        mask: list[bool] | None = None,
    ) -> list[tuple[int, float]]:
        self.ranks.append(rank)
        rows = self.embed(ids)
        if embeddings is not None and mask is not None:
            assert embeddings.dtype == self.dtype
            rows = torch.where(torch.tensor(mask).unsqueeze(1), embeddings.float(), rows)
        state = (rows * torch.arange(1, len(ids) + 1).unsqueeze(1)).sum(0) + self.leak(ids, mask)
        return [(int(state[i : i + 8].argmax()), float(state[i] * 1e-2)) for i in range(max_tokens)]


class Scaling(Engine):
    scale = SQRT_WIDTH


class ScalingInBfloat16(Engine):
    scale, dtype = 16.5, torch.bfloat16


class ReadingRawIds(Engine):
    raw_ids = True


class IgnoringRows(Engine):
    """Embeds the ids whatever rows it is given: the corruption would have no effect."""

    async def greedy(self, engine: Any, ids: list[int], **options: Any) -> list[tuple[int, float]]:
        rotated = [(i + 1) % VOCAB for i in ids] if options.pop("mask", None) else ids
        options.pop("embeddings", None)
        return await super().greedy(engine, rotated, **options)


class LeakingIds(Engine):
    """The id under a masked row changes every log-probability a little, and no token."""

    def leak(self, ids: Sequence[int], mask: Sequence[bool] | None) -> float:
        masked = [token for token, hidden in zip(ids, mask or (), strict=False) if hidden]
        return 0.0 if not mask or all(mask) else sum(masked) * 0.01


class OneOfTwoLeaks(LeakingIds):
    """The second data-parallel engine differs from the first."""

    engines = 2

    def leak(self, ids: Sequence[int], mask: Sequence[bool] | None) -> float:
        return super().leak(ids, mask) if self.ranks[-1] == 1 else 0.0


class Rows:
    def __init__(self, dtype: torch.dtype) -> None:
        self._table = table(dtype)

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        return self._table[list(token_ids)]


async def self_test(monkeypatch: pytest.MonkeyPatch, engine: Engine, vocab_size: int = VOCAB) -> float:
    monkeypatch.setattr("gateway.engine.input_rows", engine.input_rows)
    monkeypatch.setattr("gateway.engine.greedy", engine.greedy)
    monkeypatch.setattr("gateway.engine.data_parallel_ranks", engine.data_parallel_ranks)
    return await run_self_test(engine, Rows(engine.dtype), vocab_size=vocab_size, dtype=engine.dtype)


@pytest.mark.parametrize("engine", [Engine(), Scaling(), ScalingInBfloat16()])
async def test_a_sound_engine_passes_with_its_scale(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    assert await self_test(monkeypatch, engine) == pytest.approx(engine.scale, rel=1e-6)


async def test_a_small_vocabulary_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await self_test(monkeypatch, Engine(), vocab_size=5) == 1.0


async def test_every_data_parallel_engine_is_probed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.engines = 3
    await self_test(monkeypatch, engine)
    counts = [engine.ranks.count(rank) for rank in range(3)]
    assert counts[0] > 0
    assert counts == [counts[0]] * 3


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (ReadingRawIds(), "beyond the embedding"),
        (IgnoringRows(), "greedy tokens"),
        (LeakingIds(), "leak"),
        (OneOfTwoLeaks(), "leak"),
    ],
)
async def test_an_unsound_engine_is_refused(monkeypatch: pytest.MonkeyPatch, engine: Engine, reason: str) -> None:
    with pytest.raises(SelfTestError, match=reason) as caught:
        await self_test(monkeypatch, engine)
    assert isinstance(caught.value, LaunchError)
