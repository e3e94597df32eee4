import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline_training.data.packing import pack, shares_rows, two_in_a_row, unpacked
from offline_training.data.tokens import IGNORED, TokenizedExample, answered


@st.composite
def examples(draw, least=0):
    """Sequences of 2 to 12 tokens whose answers have at least one target, some of the others ignored."""
    found = []
    for _ in range(draw(st.integers(least, 8))):
        ids = draw(st.lists(st.integers(1, 50), min_size=2, max_size=12))
        targets = list(ids[-draw(st.integers(1, len(ids) - 1)) :])
        for i in range(len(targets) - 1):
            if draw(st.booleans()):
                targets[i] = IGNORED
        found.append(TokenizedExample(tuple(ids), tuple(targets)))
    return found


def predictions(batch):
    """(sequence so far, target) of each predicted position, read from the laid-out tensors alone."""
    width = batch.input_ids.shape[1]
    found = []
    for flat, target in zip(batch.predicting.tolist(), batch.targets.tolist(), strict=True):
        row, column = divmod(flat, width)
        first = column - int(batch.position_ids[row, column])
        found.append((tuple(batch.input_ids[row, first : column + 1].tolist()), target))
    return found


def expected(streams):
    return [
        (example.ids[: example.prompt_length + i], target)
        for stream in streams.values()
        for example in stream
        for i, target in enumerate(example.targets)
        if target != IGNORED
    ]


@given(forget=examples(least=1), retain=examples(), row_tokens=st.none() | st.integers(1, 40))
def test_every_target_is_predicted_from_its_own_prefix_in_the_order_given(forget, retain, row_tokens):
    streams = {"forget": forget, "retain": retain}
    batch = pack(streams, row_tokens=row_tokens)
    assert predictions(batch) == expected(streams)
    assert predictions(unpacked(batch)) == expected(streams)
    for name, span in batch.streams.items():
        numbers = [n for n, example in enumerate(streams[name]) for _ in range(example.target_count)]
        assert batch.sequence[span.start : span.stop].tolist() == numbers
        assert span.sequences == len(streams[name])
    assert batch.tokens == sum(len(example.ids) for example in forget + retain)


@given(sequences=examples(least=1), row_tokens=st.integers(1, 40))
def test_rows_are_as_short_as_their_fullest_and_none_is_needless(sequences, row_tokens):
    lengths = sorted(len(example.ids) for example in sequences)
    batch = pack({"forget": sequences}, row_tokens=row_tokens)
    rows, width = batch.input_ids.shape
    capacity = max(row_tokens, lengths[-1])
    assert batch.attention_mask is None
    assert width <= capacity
    assert rows == 1 or sum(lengths) > capacity * (rows - 1) / 2  # first fit leaves at most one row half empty
    assert any(int((row != 0).sum()) == width for row in batch.input_ids)


def test_two_short_sequences_share_the_row_that_the_longest_needs():
    long, short, other = answered((1, 2, 3), (4, 5)), answered((6,), (7,)), answered((8, 9), (10,))
    batch = pack({"forget": [short, long], "retain": [other]}, row_tokens=1)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [8, 9, 10, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert batch.predicting.tolist() == [8, 2, 3, 6]
    assert batch.targets.tolist() == [7, 4, 5, 10]


def test_rows_are_filled_evenly():
    sequences = [answered((1,) * (n - 1), (2,)) for n in (4, 4, 4, 2, 2, 2)]
    assert pack({"forget": sequences}, row_tokens=10).input_ids.shape == (2, 10)
    assert pack({"forget": sequences}, row_tokens=17).input_ids.shape == (2, 10)


def test_a_row_for_each_sequence_is_padded_under_a_mask():
    batch = pack({"forget": [answered((1,), (2, 3)), answered((4,), (5,))]}, row_tokens=None, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert pack({"forget": [answered((1,), (2,))] * 2}, row_tokens=None).attention_mask is None


def test_the_padded_tail_of_a_shared_row_is_a_sequence_of_its_own():
    batch = pack({"forget": [answered((1,), (2, 3)), answered((4,), (5,))]}, row_tokens=3, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 0]]


def test_shared_rows_are_found_and_made():
    sequences = [answered((1, 2), (3,)), answered((4,), (5,))]
    apart = pack({"forget": sequences}, row_tokens=None)
    assert not shares_rows(apart)
    assert not shares_rows(pack({"forget": sequences}, row_tokens=4))
    assert shares_rows(pack({"forget": sequences}, row_tokens=5))
    assert two_in_a_row(apart).input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert shares_rows(two_in_a_row(pack({"forget": sequences[:1]}, row_tokens=None)))


def test_a_batch_moves_whole():
    batch = pack({"forget": [answered((1,), (2, 3)), answered((4,), (5,))]}, row_tokens=None).to("meta")
    moved = (batch.input_ids, batch.position_ids, batch.attention_mask, batch.predicting, batch.targets, batch.sequence)
    assert {tensor.device for tensor in moved} == {torch.device("meta")}


def test_nothing_to_pack_and_impossible_rows_are_refused():
    with pytest.raises(ValueError, match="no sequence"):
        pack({"forget": [], "retain": []}, row_tokens=8)
    with pytest.raises(ValueError, match="row_tokens: 0"):
        pack({"forget": [answered((1,), (2,))]}, row_tokens=0)
