import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.negatives import NegativeSampler, uniform_draws
from bert4rec_hf.data.packing import left_padded
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling.attention import sees

MASK = (2**64) - 1


def splitmix64(key, counter):
    """The published algorithm in Python's own integers: advance the state, then mix it."""
    state = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return ((state ^ (state >> 31)) >> 11) / 2**53


def test_draws_are_those_of_splitmix64():
    keys, counters = [0, 1, 12345678901234567890, MASK], [0, 1, 7, 1000]
    expected = [splitmix64(key, counter) for key, counter in zip(keys, counters, strict=True)]
    actual = uniform_draws(np.array(keys, dtype=np.uint64), np.array(counters))
    np.testing.assert_array_equal(actual, expected)


def test_draws_are_uniform():
    keys, counters = np.divmod(np.arange(200_000), 20)
    counts, _ = np.histogram(uniform_draws(keys.astype(np.uint64), counters), bins=50, range=(0, 1))
    # 49 degrees of freedom: chi-square is beyond 100 once in fifty thousand times.
    assert ((counts - 4_000) ** 2 / 4_000).sum() < 100


def padded(**settings):
    return MaskedItemCollator(is_packed=False, **settings)


def flat(histories):
    """The same histories as they come from a prepared dataset."""
    ends = np.cumsum([0, *map(len, histories)])
    return Histories(np.concatenate(histories).astype(np.int32), ends)


def examples(histories):
    return [{"items": items, "view": view} for view, items in enumerate(histories)]


def make_histories(count, longest, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 50, length) for length in generator.integers(1, longest, count)]


def unmasked(batch):
    """The windows as they were before masking, padding left out."""
    items = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    return [
        row[mask.bool()].tolist() for row, mask in zip(items, batch["attention_mask"], strict=True)
    ]


def test_masking_loses_no_item():
    histories = make_histories(97, longest=9)
    batch = padded(max_history_length=9, mask_ratio=0.4)(examples(histories))
    assert unmasked(batch) == [history.tolist() for history in histories]
    is_masked = batch["labels"] != -100
    assert torch.equal(batch["input_ids"] == 1, is_masked)
    assert is_masked.any(dim=1).all()
    assert not (is_masked & (batch["attention_mask"] == 0)).any()


def test_the_newest_items_stand_in_the_last_columns():
    batch = padded(max_history_length=3)(examples([[7, 8, 9, 10], [5]]))
    assert unmasked(batch) == [[8, 9, 10], [5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("ratio", [0.15, 0.6])
def test_about_the_mask_ratio_is_masked(ratio):
    collator = padded(max_history_length=30, mask_ratio=ratio, last_item_ratio=0.0)
    batch = collator(examples([np.arange(2, 32)] * 2_000))
    share = (batch["labels"] != -100).double().mean().item()
    # 60,000 draws: three standard deviations are 0.006; a view without a mask gets one.
    assert share == pytest.approx(ratio + (1 - ratio) ** 30 / 30, abs=0.007)


def test_the_guaranteed_share_of_views_masks_just_the_last_item():
    collator = padded(max_history_length=8, mask_ratio=0.9, last_item_ratio=0.3)
    batch = collator(examples([np.arange(2, 10)] * 4_000))
    just_last = ((batch["labels"] != -100) == torch.tensor([False] * 7 + [True])).all(dim=1)
    assert just_last.double().mean().item() == pytest.approx(0.3, abs=0.025)


def test_windows_are_the_newest_items_unless_random():
    collator = padded(max_history_length=4, last_item_ratio=0.5, random_window_ratio=0.0)
    windows = unmasked(collator(examples([np.arange(2, 12)] * 50)))
    assert windows == [[8, 9, 10, 11]] * 50


def test_random_windows_of_masked_views_are_full_and_reach_everywhere():
    collator = padded(max_history_length=4, last_item_ratio=0.0, random_window_ratio=1.0)
    windows = unmasked(collator(examples([np.arange(2, 9)] * 300)))
    assert sorted(set(map(tuple, windows))) == [(s, s + 1, s + 2, s + 3) for s in (2, 3, 4, 5)]


def test_random_windows_of_last_item_views_end_at_every_item_but_the_first():
    collator = padded(max_history_length=4, last_item_ratio=1.0, random_window_ratio=1.0)
    windows = unmasked(collator(examples([np.arange(2, 8)] * 300)))
    assert sorted(set(map(tuple, windows))) == [
        (2, 3),
        (2, 3, 4),
        (2, 3, 4, 5),
        (3, 4, 5, 6),
        (4, 5, 6, 7),
    ]


def test_a_view_depends_on_its_key_and_not_on_its_batch():
    histories = make_histories(20, longest=12)
    collator = padded(max_history_length=7, mask_ratio=0.5, random_window_ratio=0.5)
    together = collator(examples(histories))
    for row, example in enumerate(examples(histories)):
        alone = collator([example])
        width = alone["labels"].shape[1]
        assert torch.equal(together["labels"][row, -width:], alone["labels"][0])
        assert torch.equal(together["input_ids"][row, -width:], alone["input_ids"][0])
    changed = collator([{**each, "view": each["view"] + 100} for each in examples(histories)])
    assert not torch.equal(changed["labels"], together["labels"])


def test_without_keys_views_follow_the_seed_of_torch():
    collator = padded(max_history_length=9, mask_ratio=0.5)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(collator([{"items": items} for items in make_histories(30, longest=9)]))
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert not torch.equal(batches[0]["labels"], batches[2]["labels"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0}, r"mask_ratio must be in \(0, 1\], got 0"),
        ({"last_item_ratio": 1.5}, r"last_item_ratio must be in \[0, 1\], got 1.5"),
    ],
)
def test_an_impossible_ratio_is_refused(settings, message):
    with pytest.raises(StrictDataclassError) as caught:
        MaskedItemCollator(max_history_length=5, **settings)
    assert re.search(message, str(caught.value.__cause__))


def test_a_packed_batch_is_the_padded_one_without_its_padding():
    histories = make_histories(31, longest=12)
    settings = {"max_history_length": 7, "mask_ratio": 0.5, "random_window_ratio": 0.5}
    rows = padded(**settings)(examples(histories))
    row = MaskedItemCollator(**settings)(examples(histories))
    lengths = rows["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    is_item = rows["attention_mask"][order].bool()
    for name in ("input_ids", "labels"):
        assert torch.equal(row[name], rows[name][order][is_item].unsqueeze(0))
    assert row["cu_seq_lens_q"].tolist() == [0, *lengths[order].cumsum(0).tolist()]
    assert row["position_ids"][0].tolist() == [
        place for length in lengths[order].tolist() for place in range(length)
    ]
    assert row["max_length_q"] == row["max_length_k"] == 7
    assert torch.equal(row["cu_seq_lens_k"], row["cu_seq_lens_q"])
    assert row["cu_seq_lens_q"].dtype == torch.int32
    assert torch.equal(row["masked_positions"], (row["labels"][0] != -100).nonzero()[:, 0])


@pytest.mark.parametrize("multiple", [5, 16, 100])
def test_a_filled_up_batch_has_a_shape_that_stays_and_nothing_new(multiple):
    shapes = set()
    for seed in range(6):
        histories = make_histories(13, longest=9, seed=seed)
        settings = {"max_history_length": 6, "mask_ratio": 0.5}
        plain = MaskedItemCollator(**settings)(examples(histories))
        filled = MaskedItemCollator(**settings, pad_to_multiple_of=multiple)(examples(histories))
        num_items, ends = plain["labels"].shape[1], filled["cu_seq_lens_q"]
        assert filled["labels"].shape[1] % multiple == 0
        for name in ("input_ids", "position_ids", "labels"):
            assert torch.equal(filled[name][:, :num_items], plain[name])
        assert filled["input_ids"][0, num_items:].tolist().count(0) == ends[-1] - num_items > 0
        assert (filled["labels"][0, num_items:] == -100).all()
        assert torch.equal(ends[: len(histories) + 1], plain["cu_seq_lens_q"])
        assert (ends.diff() >= 0).all()
        assert ends.diff().max() <= 6
        masked = filled["masked_positions"]
        kept = masked[filled["labels"][0, masked] != -100]
        assert torch.equal(kept, plain["masked_positions"])
        assert len(masked) % max(1, multiple // 4) == 0
        shapes.add((len(ends), filled["labels"].shape[1] if multiple == 100 else None))
    assert len(shapes) == 1


def test_negatives_come_with_the_batch_and_depend_on_its_views_alone():
    histories = make_histories(9, longest=9)
    sampler = NegativeSampler(np.ones(50), 30, "uniform")
    batches = [
        MaskedItemCollator(max_history_length=9, negatives=sampler, is_packed=is_packed)(
            examples(histories[:count])
        )
        for is_packed, count in ((True, 9), (False, 9), (True, 8))
    ]
    assert batches[0]["negatives"].shape == batches[0]["negative_log_counts"].shape == (30,)
    assert torch.equal(batches[0]["negatives"], batches[1]["negatives"])
    assert not torch.equal(batches[0]["negatives"], batches[2]["negatives"])


def test_a_batch_of_the_dataset_is_that_of_its_examples():
    histories = make_histories(40, longest=12)
    collator = MaskedItemCollator(max_history_length=7, mask_ratio=0.5, random_window_ratio=0.5)
    views = np.array([(7, 100), (3, 5), (21, 9)], dtype=[("row", int), ("view", np.uint64)])
    batch = collator(TrainingViews(flat(histories)).__getitems__(views))
    expected = collator([{"items": histories[row], "view": view} for row, view in views.tolist()])
    assert batch.keys() == expected.keys()
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])


def sample(lengths, **options):
    settings = {"batch_size": 4, "num_batches": 12, "seed": 3} | options
    batches = ViewBatchSampler(np.array(lengths), **settings)
    return [list(map(tuple, batch.tolist())) for batch in batches]


def test_every_history_comes_once_per_epoch_under_a_key_of_its_own():
    batches = sample(range(1, 13), num_batches=6)
    epochs = [sorted(row for batch in batches[i : i + 3] for row, _ in batch) for i in (0, 3)]
    assert epochs == [list(range(12))] * 2
    assert len({key for batch in batches for _, key in batch}) == 24
    assert batches[:3] != batches[3:]


def test_a_sampler_that_skips_goes_on_as_if_it_had_not():
    whole = sample(range(1, 15))
    for first in (1, 3, 7, 11):
        assert sample(range(1, 15), first_batch=first) == whole[first:]


def test_batches_hold_nearly_the_same_number_of_items():
    lengths = np.random.default_rng(0).geometric(0.1, size=640)
    batches = sample(lengths, batch_size=20, num_batches=32)
    work = [lengths[[row for row, _ in batch]].sum() for batch in batches]
    unsorted = [lengths[start : start + 20].sum() for start in range(0, 640, 20)]
    for pool in (work[:16], work[16:]):
        assert np.ptp(pool) <= lengths.max()
    assert np.ptp(unsorted) > 2 * max(np.ptp(work[:16]), np.ptp(work[16:]))


def test_fewer_histories_than_a_batch_make_one_batch():
    assert [len(batch) for batch in sample([5, 6, 7], num_batches=2)] == [3, 3]


def test_batches_do_not_depend_on_the_number_of_workers():
    histories = flat(make_histories(40, longest=12))
    collator = MaskedItemCollator(max_history_length=7, mask_ratio=0.5, random_window_ratio=0.5)
    runs = []
    for num_workers in (0, 2):
        sampler = ViewBatchSampler(histories.lengths, batch_size=8, num_batches=9, seed=0)
        views = TrainingViews(histories)
        runs.append(
            list(
                DataLoader(
                    views, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers
                )
            )
        )
    assert len(runs[0]) == 9
    for alone, helped in zip(*runs, strict=True):
        assert torch.equal(alone["input_ids"], helped["input_ids"])
        assert torch.equal(alone["labels"], helped["labels"])


def test_left_padding_keeps_values_and_order():
    rows = left_padded(np.array([7, 8, 9, 4]), np.array([1, 3]), fill=-100)
    assert rows.tolist() == [[-100, -100, 7], [8, 9, 4]]


def read_windows(batch):
    """Per window the rows of a packed batch: ids, labels, places, and what its tokens see by."""
    ends = batch["cu_seq_lens_q"].tolist()
    names = ("input_ids", "labels", "position_ids", "prefix_ids", "is_query")
    rows = [batch[name][0] for name in names if name in batch]
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        yield [row[start:end].tolist() for row in rows]


@pytest.mark.parametrize("prefix_ratio", [0.0, 0.4, 1.0])
def test_a_prefix_view_asks_for_items_from_those_before_them_alone(prefix_ratio):
    histories = [np.arange(2, 2 + length) + 100 * length for length in (1, 2, 3, 9, 17, 30)]
    collator = MaskedItemCollator(
        max_history_length=20,
        last_item_ratio=0.0,
        prefix_view_ratio=1.0,
        prefix_ratio=prefix_ratio,
    )
    batch = collator([{"items": history, "view": 7} for history in histories])
    by_length = {}
    for ids, labels, places, *prefixes in read_windows(batch):
        seen_by_row = sees(*map(torch.tensor, prefixes)).tolist()
        targets = [label for label in labels if label >= 0]
        window = histories[[1, 2, 3, 9, 17, 30].index(targets[-1] // 100)][-20:].tolist()
        by_length[len(window)] = len(targets)
        assert [value for value in ids if value > 1] == window[:-1]
        assert [value == 1 for value in ids] == [label >= 0 for label in labels]
        for value, label, place, row in zip(ids, labels, places, seen_by_row, strict=True):
            seen = [other for other, is_seen in zip(ids, row, strict=True) if is_seen]
            if value == 1:  # the mask sees what lies before the item it asks for, and itself
                assert window[place] == label
                assert seen == [*window[:place], 1]
            else:  # an item sees its prefix, up to the next item that is asked for
                assert window[place] == value
                asked = [other for other in targets if window.index(other) > place]
                assert seen == window[: window.index(asked[0])]
    counts = [by_length[length] for length in (1, 2, 3, 9, 17, 20)]
    if prefix_ratio == 0.4:
        assert 8 < sum(counts) < 30
    else:
        assert counts == ([1, 1, 2, 8, 16, 19] if prefix_ratio else [1] * 6)


def test_prefix_views_lie_among_masked_ones():
    collator = MaskedItemCollator(
        max_history_length=20, mask_ratio=0.3, last_item_ratio=0.2, prefix_view_ratio=0.5
    )
    plain = MaskedItemCollator(max_history_length=20, mask_ratio=0.3, last_item_ratio=0.2)
    histories = [np.arange(2, 14) + 20 * number for number in range(400)]
    examples = [{"items": items, "view": 10 * n + 1} for n, items in enumerate(histories)]
    batch = plain(examples)
    others = {tuple(ids) for ids, *_ in read_windows(batch)}
    num_prefix_views = 0
    for ids, *_, is_query in read_windows(collator(examples)):
        num_prefix_views += any(is_query)
        assert any(is_query) or tuple(ids) in others
    assert 150 < num_prefix_views < 250


def test_a_batch_without_prefix_views_has_no_prefixes():
    batch = MaskedItemCollator(max_history_length=9)([{"items": [2, 3, 4], "view": 1}])
    assert not {"prefix_ids", "is_query"} & batch.keys()


def test_wrong_shares_of_views_are_refused():
    with pytest.raises(
        StrictDataclassError, match=r"must not exceed 1 together, got 0\.5 and 0\.6"
    ):
        MaskedItemCollator(max_history_length=9, last_item_ratio=0.5, prefix_view_ratio=0.6)
    with pytest.raises(StrictDataclassError, match="can only be packed"):
        MaskedItemCollator(max_history_length=9, prefix_view_ratio=0.6, is_packed=False)
