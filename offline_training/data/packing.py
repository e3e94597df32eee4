"""Lays sequences out for one forward: several behind each other in a row, so that hardly any padding is computed.

Knows nothing of models. Borders between sequences are where `position_ids` start again at 0, which is what transformers
reads them from (`masking_utils.find_packed_sequence_indices`) when it is given no attention mask.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from offline_training.data.tokens import IGNORED, Stream, TokenizedExample


@dataclass(frozen=True)
class StreamSpan:
    """Which of a batch's A predicted positions are one stream's: `start` to `stop`; and of how many sequences."""

    start: int
    stop: int
    sequences: int


@dataclass
class PackedBatch:
    """Sequences of all streams in R rows of L tokens, and the A of their positions that predict a target.

    The A positions lie stream by stream and sequence by sequence in the order given, whatever row they are in.
    """

    input_ids: torch.Tensor
    """(R, L)."""
    position_ids: torch.Tensor
    """(R, L), from 0 in every sequence. The padded tail of a row is a sequence of its own, which nobody sees."""
    attention_mask: torch.Tensor | None
    """(R, L), 1 for real tokens; only where rows of one sequence each are padded."""
    predicting: torch.Tensor
    """(A,) positions in the flattened R*L whose logits predict a target."""
    targets: torch.Tensor
    """(A,) token ids; ignored targets are left out."""
    sequence: torch.Tensor
    """(A,) which sequence of its stream each belongs to, from 0."""
    streams: dict[Stream, StreamSpan]
    tokens: int
    """Real tokens among R*L."""

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on a device."""
        mask = self.attention_mask
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            attention_mask=None if mask is None else mask.to(device, non_blocking=True),
            predicting=self.predicting.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            sequence=self.sequence.to(device, non_blocking=True),
        )


def pack(
    streams: Mapping[Stream, Sequence[TokenizedExample]], *, row_tokens: int | None, pad_id: int = 0
) -> PackedBatch:
    """Lays out the sequences of all streams for one forward.

    `row_tokens=None` gives each sequence a padded row of its own. Else sequences share rows of at most `row_tokens`
    tokens, or of as many as the longest has, whichever is more; rows come out as short as the fullest of them. Longer
    rows waste fewer tokens and cost more attention. (Flash attention in transformers sees borders only in a batch of
    one row: there, give `row_tokens` for all of it.) Raises ValueError without sequences, or with `row_tokens` below 1.
    """
    if row_tokens is not None and row_tokens < 1:
        raise ValueError(f"row_tokens: {row_tokens} is less than 1")
    examples = [example for stream in streams.values() for example in stream]
    if not examples:
        raise ValueError("streams: there is no sequence to pack")
    lengths = [len(example.ids) for example in examples]
    rows = [[i] for i in range(len(lengths))] if row_tokens is None else _rows(lengths, max(*lengths, row_tokens))
    width = max(sum(lengths[i] for i in row) for row in rows)
    starts = [0] * len(examples)  # in the flattened R*L
    input_ids: list[list[int]] = []
    position_ids: list[list[int]] = []
    for number, row in enumerate(rows):
        ids: list[int] = []
        positions: list[int] = []
        for i in row:
            starts[i] = number * width + len(ids)
            ids.extend(examples[i].ids)
            positions.extend(range(lengths[i]))
        tail = width - len(ids)
        input_ids.append(ids + [pad_id] * tail)
        position_ids.append(positions + list(range(tail)))
    padded = row_tokens is None and len(set(lengths)) > 1
    predicting, targets, sequence, spans = _predictions(streams, starts)
    return PackedBatch(
        input_ids=torch.tensor(input_ids, dtype=torch.long),
        position_ids=torch.tensor(position_ids, dtype=torch.long),
        attention_mask=_mask(lengths) if padded else None,
        predicting=torch.tensor(predicting, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        sequence=torch.tensor(sequence, dtype=torch.long),
        streams=spans,
        tokens=sum(lengths),
    )


def unpacked(batch: PackedBatch) -> PackedBatch:
    """The same predictions, in the same order, with a padded row for each sequence that predicts something."""
    starts, pieces = _pieces(batch)
    mask = _mask([len(piece) for piece in pieces]).to(batch.input_ids.device)  # (R, L)
    piece_of = torch.bucketize(batch.predicting, starts, right=True) - 1
    return replace(
        batch,
        input_ids=torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True),
        position_ids=torch.where(mask.bool(), mask.cumsum(1) - 1, 0),
        attention_mask=None if mask.all() else mask,
        predicting=piece_of * mask.shape[1] + batch.predicting - starts[piece_of],
        tokens=int(mask.sum()),
    )


def shares_rows(batch: PackedBatch) -> bool:
    """Whether some row holds several sequences that predict something."""
    starts, _ = _pieces(batch)
    rows = starts // batch.input_ids.shape[1]
    return len(torch.unique(rows)) < len(rows)


def two_in_a_row(batch: PackedBatch) -> PackedBatch:
    """One row of two of the batch's sequences (or of one twice), all of whose tokens are predicted."""
    _, pieces = _pieces(batch)
    ids = [tuple(piece.tolist()) for piece in (pieces[0], pieces[-1])]
    examples = [TokenizedExample(one, one[1:]) for one in ids]
    return pack({"forget": examples}, row_tokens=sum(map(len, ids))).to(batch.input_ids.device)


def _rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the sequences of each row: as few rows as first-fit decreasing needs, filled as evenly as possible."""
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    fitted: list[list[int]] = []
    room: list[int] = []
    for i in longest_first:
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            row = len(room)
            room.append(capacity)
            fitted.append([])
        fitted[row].append(i)
        room[row] -= lengths[i]
    # First fit leaves its last row nearly empty; the emptiest row first makes all of them shorter, where it fits.
    even: list[list[int]] = [[] for _ in fitted]
    fill = [0] * len(fitted)
    for i in longest_first:
        row = fill.index(min(fill))
        even[row].append(i)
        fill[row] += lengths[i]
    return even if max(fill) <= capacity - min(room) else fitted


def _mask(lengths: Sequence[int]) -> torch.Tensor:
    """(R, L): 1 for the first `lengths[r]` tokens of row r."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _predictions(
    streams: Mapping[Stream, Sequence[TokenizedExample]], starts: Sequence[int]
) -> tuple[list[int], list[int], list[int], dict[Stream, StreamSpan]]:
    predicting: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    spans: dict[Stream, StreamSpan] = {}
    next_start = iter(starts)
    for stream, examples in streams.items():
        first = len(targets)
        for number, (example, start) in enumerate(
            zip(examples, itertools.islice(next_start, len(examples)), strict=True)
        ):
            before = start + example.prompt_length - 1  # the logits of a position are about the token after it
            wanted = [(before + i, target) for i, target in enumerate(example.targets) if target != IGNORED]
            predicting.extend(position for position, _ in wanted)
            targets.extend(target for _, target in wanted)
            sequence.extend([number] * len(wanted))
        spans[stream] = StreamSpan(first, len(targets), len(examples))
    return predicting, targets, sequence, spans


def _pieces(batch: PackedBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Flat starts (P,) and ids of the P sequences of the batch that predict something."""
    flat = batch.input_ids.reshape(-1)
    borders = (batch.position_ids.reshape(-1) == 0).nonzero().flatten()
    stops = torch.cat((borders[1:], borders.new_tensor([flat.numel()])))
    used = torch.unique(torch.bucketize(batch.predicting, borders, right=True) - 1)
    starts = borders[used]
    return starts, [flat[start:stop] for start, stop in zip(starts.tolist(), stops[used].tolist(), strict=True)]
