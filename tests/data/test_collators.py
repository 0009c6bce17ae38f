import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader

from bert4rec_hf.data.collators import (
    MaskedItemCollator,
    TrainingViews,
    ViewBatchSampler,
    left_padded,
    uniform_draws,
)

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
    batch = MaskedItemCollator(max_history_length=9, mask_ratio=0.4)(examples(histories))
    assert unmasked(batch) == [history.tolist() for history in histories]
    is_masked = batch["labels"] != -100
    assert torch.equal(batch["input_ids"] == 1, is_masked)
    assert is_masked.any(dim=1).all()
    assert not (is_masked & (batch["attention_mask"] == 0)).any()


def test_the_newest_items_stand_in_the_last_columns():
    batch = MaskedItemCollator(max_history_length=3)(examples([[7, 8, 9, 10], [5]]))
    assert unmasked(batch) == [[8, 9, 10], [5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("ratio", [0.15, 0.6])
def test_about_the_mask_ratio_is_masked(ratio):
    collator = MaskedItemCollator(max_history_length=30, mask_ratio=ratio, last_item_ratio=0.0)
    batch = collator(examples([np.arange(2, 32)] * 2_000))
    share = (batch["labels"] != -100).double().mean().item()
    # 60,000 draws: three standard deviations are 0.006; a view without a mask gets one.
    assert share == pytest.approx(ratio + (1 - ratio) ** 30 / 30, abs=0.007)


def test_the_guaranteed_share_of_views_masks_just_the_last_item():
    collator = MaskedItemCollator(max_history_length=8, mask_ratio=0.9, last_item_ratio=0.3)
    batch = collator(examples([np.arange(2, 10)] * 4_000))
    just_last = ((batch["labels"] != -100) == torch.tensor([False] * 7 + [True])).all(dim=1)
    assert just_last.double().mean().item() == pytest.approx(0.3, abs=0.025)


def test_windows_are_the_newest_items_unless_random():
    collator = MaskedItemCollator(
        max_history_length=4, last_item_ratio=0.5, random_window_ratio=0.0
    )
    windows = unmasked(collator(examples([np.arange(2, 12)] * 50)))
    assert windows == [[8, 9, 10, 11]] * 50


def test_random_windows_of_masked_views_are_full_and_reach_everywhere():
    collator = MaskedItemCollator(
        max_history_length=4, last_item_ratio=0.0, random_window_ratio=1.0
    )
    windows = unmasked(collator(examples([np.arange(2, 9)] * 300)))
    assert sorted(set(map(tuple, windows))) == [(s, s + 1, s + 2, s + 3) for s in (2, 3, 4, 5)]


def test_random_windows_of_last_item_views_end_at_every_item_but_the_first():
    collator = MaskedItemCollator(
        max_history_length=4, last_item_ratio=1.0, random_window_ratio=1.0
    )
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
    collator = MaskedItemCollator(max_history_length=7, mask_ratio=0.5, random_window_ratio=0.5)
    together = collator(examples(histories))
    for row, example in enumerate(examples(histories)):
        alone = collator([example])
        width = alone["labels"].shape[1]
        assert torch.equal(together["labels"][row, -width:], alone["labels"][0])
        assert torch.equal(together["input_ids"][row, -width:], alone["input_ids"][0])
    changed = collator([{**each, "view": each["view"] + 100} for each in examples(histories)])
    assert not torch.equal(changed["labels"], together["labels"])


def test_without_keys_views_follow_the_seed_of_torch():
    collator = MaskedItemCollator(max_history_length=9, mask_ratio=0.5)
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


def sample(lengths, **options):
    settings = {"batch_size": 4, "num_batches": 12, "seed": 3} | options
    return list(ViewBatchSampler(np.array(lengths), **settings))


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


def test_lengths_of_a_batch_are_alike():
    lengths = np.random.default_rng(0).permutation(64)
    spreads = [
        np.ptp(lengths[[row for row, _ in batch]]) for batch in sample(lengths, num_batches=16)
    ]
    assert spreads == [3] * 16


def test_fewer_histories_than_a_batch_make_one_batch():
    assert [len(batch) for batch in sample([5, 6, 7], num_batches=2)] == [3, 3]


def test_batches_do_not_depend_on_the_number_of_workers():
    histories = make_histories(40, longest=12)
    lengths = np.array([len(history) for history in histories])
    collator = MaskedItemCollator(max_history_length=7, mask_ratio=0.5, random_window_ratio=0.5)
    runs = []
    for num_workers in (0, 2):
        sampler = ViewBatchSampler(lengths, batch_size=8, num_batches=9, seed=0)
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
