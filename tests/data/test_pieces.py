import tracemalloc

import numpy as np
import polars as pl
import pyarrow as pa

from bert4rec_hf.data import prepared
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.pieces import Pieces, blocks, count_ids
from bert4rec_hf.data.prepared import from_dataset
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.data.writing import to_dataset

LENGTHS = (4, 0, 1, 7, 0, 3)
WHOLE = np.arange(100, 115, dtype=np.int32)


def cut():
    return Pieces(np.split(WHOLE, np.cumsum(LENGTHS)[:-1]))


def test_pieces_read_as_one_array():
    pieces = cut()
    assert (len(pieces), pieces.nbytes, pieces.dtype) == (15, 60, np.int32)
    assert np.array_equal(pieces, WHOLE)
    for start in range(16):
        for stop in range(16):
            assert np.array_equal(pieces[start:stop], WHOLE[start:stop])
    places = np.random.default_rng(0).integers(15, size=41)
    assert np.array_equal(pieces[places], WHOLE[places])
    assert pieces[np.empty(0, dtype=np.int64)].tolist() == []
    assert len(Pieces([])) == 0


def test_ids_are_counted_block_by_block(monkeypatch):
    monkeypatch.setattr("bert4rec_hf.data.pieces.BLOCK", 4)
    assert [block.tolist() for block in blocks(cut())][-1] == [112, 113, 114]
    counted = count_ids(Pieces([np.array([3, 1]), np.array([3, 3, 0, 1])]), 5)
    assert counted.tolist() == [1, 2, 0, 3, 0]


def save(folder, num_histories, mean_length=10):
    """A training part as `datasets` saves it, a batch of a file for each thousand histories."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 2 * mean_length - 1, size=num_histories)
    values = generator.integers(2, 5_002, size=lengths.sum(), dtype=np.int32)
    histories = Histories(values, np.concatenate([[0], np.cumsum(lengths)]))
    users = pl.Series(np.arange(num_histories)).cast(pl.String)
    to_dataset(histories, users).save_to_disk(folder)
    return histories


def test_many_histories_stay_in_their_files_and_read_the_same(tmp_path, monkeypatch):
    expected = save(tmp_path, 2_345)
    small = from_dataset(prepared.datasets.load_from_disk(str(tmp_path)))
    monkeypatch.setattr(prepared, "COPIED_BYTES", 0)
    large = from_dataset(prepared.datasets.load_from_disk(str(tmp_path)))
    assert len(large.values.arrays) == 3
    sampler = ViewBatchSampler(large.lengths, batch_size=31, num_batches=9, seed=0)
    collator = MaskedItemCollator(max_history_length=8)
    for found in (small, large):
        assert np.array_equal(found.values, expected.values)
        assert np.array_equal(found.offsets, expected.offsets)
        assert np.array_equal(found[1_999], expected[1_999])
    for batch in sampler:
        ours, theirs = (
            collator(TrainingViews(each).__getitems__(batch)) for each in (large, expected)
        )
        assert ours["input_ids"].equal(theirs["input_ids"])


def test_a_training_process_holds_few_bytes_for_each_history_however_long_it_is(tmp_path):
    """What numpy and Arrow allocate: an offset of 8 bytes, a length of 4, an order and a key of 12;
    lengths are worked out in 64 bits, and what comes in and goes out does not count."""
    held = []
    for number, mean_length in ((500_000, 10), (500_000, 40), (1_000_000, 40)):
        folder = tmp_path / f"{number}-{mean_length}"
        save(folder, number, mean_length)
        dataset = prepared.datasets.load_from_disk(str(folder))
        prepared.COPIED_BYTES, usual = 0, prepared.COPIED_BYTES
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        histories = from_dataset(dataset)
        count_ids(histories.values, 5_002)
        lengths = histories.lengths.clip(max=50)
        sampler = ViewBatchSampler(lengths, batch_size=128, num_batches=10**6, seed=0)
        del lengths
        batches = iter(sampler)
        for _ in range(sampler.batches_per_epoch + 3):  # into the second epoch
            next(batches)
        held.append((tracemalloc.get_traced_memory()[1], pa.total_allocated_bytes() - before))
        tracemalloc.stop()
        prepared.COPIED_BYTES = usual
    assert all(of_arrow < 1e6 for _, of_arrow in held)
    peaks = [of_numpy for of_numpy, _ in held]
    assert abs(peaks[1] - peaks[0]) < 8e6  # four times the items
    assert (peaks[2] - peaks[1]) / 500_000 < 40
