import os
import socket
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.evaluation import (
    BASELINES,
    EvaluationConfig,
    describe_protocol,
    evaluate,
    evaluate_in_detail,
    hit_rate,
    ndcg,
    rank_histories,
)
from bert4rec_hf.evaluation.ranking import HISTORIES_AT_ONCE, ITEMS_AT_ONCE
from bert4rec_hf.evaluation.shared_ranking import count_items

VOCAB_SIZE = 211


@pytest.fixture
def split():
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 40, size=53)
    histories = [generator.integers(2, VOCAB_SIZE, size=size).astype(np.int32) for size in sizes]
    return histories, generator.integers(2, VOCAB_SIZE, size=53).astype(np.int32)


@pytest.fixture
def popularity():
    return np.random.default_rng(6).integers(0, 150, size=VOCAB_SIZE)


@pytest.fixture
def scorer(dot_scorer):
    return dot_scorer(torch.randn(VOCAB_SIZE, 19, generator=torch.Generator().manual_seed(7)))


def test_ranks_come_in_the_order_of_the_histories(scorer, split):
    histories, targets = split
    config = EvaluationConfig(ks=[5], seen_targets="ranked")
    ranks = rank_histories(scorer, histories, targets, config).ranks
    for history, target, rank in zip(histories, targets, ranks.tolist(), strict=True):
        scores = scorer.items @ scorer.items[history].mean(dim=0)
        left_out = set(history.tolist()) - {target}
        ahead = [
            i for i in range(2, VOCAB_SIZE) if i not in left_out and scores[i] > scores[target]
        ]
        assert rank == 1 + len(ahead)


@pytest.mark.parametrize("candidates", ["full", "sampled"])
def test_batch_and_chunk_size_change_nothing(scorer, split, popularity, candidates):
    ranks = [
        rank_histories(
            scorer,
            *split,
            EvaluationConfig(
                ks=[5],
                candidates=candidates,
                num_negatives=31,
                batch_size=batch_size,
                chunk_size=chunk_size,
            ),
            popularity,
        ).ranks
        for batch_size, chunk_size in [(1, 1_000), (7, 13), (53, 209), (1_000, 208)]
    ]
    assert all(torch.equal(ranks[0], other) for other in ranks[1:])


@pytest.mark.parametrize(("chunk_size", "times"), [(20_009, 1), (20_008, 2), (3_001, 2)])
def test_what_is_scored_at_once_is_bounded_and_scored_once_if_it_can_be_held(
    recording_scorer, chunk_size, times
):
    scorer = recording_scorer(torch.randn(20_011, 3))
    histories = [np.array([2 + n, 5_000 + n, 20_010 - n]) for n in range(301)]
    config = EvaluationConfig(ks=[5], batch_size=301, chunk_size=chunk_size)
    ranks = rank_histories(scorer, histories, np.arange(301) + 900, config).ranks
    assert max(rows for rows, _ in scorer.blocks) == HISTORIES_AT_ONCE == 256
    assert max(columns for _, columns in scorer.blocks) == min(chunk_size, ITEMS_AT_ONCE)
    assert sum(rows * columns for rows, columns in scorer.blocks) == times * 301 * 20_009
    one_by_one = EvaluationConfig(ks=[5], batch_size=1)
    few = range(250, 260)
    alone = rank_histories(scorer, [histories[n] for n in few], np.array(few) + 900, one_by_one)
    assert ranks[250:260].equal(alone.ranks)


def test_a_batch_of_several_runs_is_ranked_by_every_baseline():
    generator = np.random.default_rng(8)
    histories = [generator.integers(2, 97, size=size) for size in generator.integers(1, 9, 301)]
    targets = generator.integers(2, 97, size=301)
    for baseline in BASELINES.values():
        scorer = baseline(histories, 97)
        rankings = [
            rank_histories(scorer, histories, targets, config, num_top=3)
            for config in (EvaluationConfig(ks=[5], batch_size=size) for size in (301, 256, 13))
        ]
        assert all(other.ranks.equal(rankings[0].ranks) for other in rankings)
        assert all(other.top_ids.shape == (301, 3) for other in rankings)


def test_what_a_process_holds_of_a_history_is_little_however_many_are_ranked():
    """A place, two ranks and whether it repeats, 25 bytes; and these once more, put together."""
    generator, peaks = np.random.default_rng(8), []
    config = EvaluationConfig(ks=[5, 20], num_bootstrap_samples=10)
    for number in (50_000, 100_000):
        lengths = generator.integers(2, 9, number)
        offsets = np.concatenate([[0], lengths.cumsum()])
        values = generator.integers(2, 97, offsets[-1], dtype=np.int32)
        histories, targets = Histories(values, offsets), generator.integers(2, 97, number)
        scorer = BASELINES["popularity"]([values], 97)
        tracemalloc.start()
        evaluate_in_detail(scorer, histories, targets, config, np.ones(97))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 50_000 < 100


def test_items_are_counted_in_lists_and_in_histories_that_lie_end_to_end(split):
    histories, targets = split
    ends = np.cumsum([0, *map(len, histories)])
    end_to_end = Histories(np.concatenate(histories), ends, targets)
    expected = [len(history) for history in histories]
    assert count_items(histories).tolist() == count_items(end_to_end).tolist() == expected


@pytest.fixture
def repeating(table_scorer):
    """Three histories whose second target repeats; it would have stood second."""
    table = torch.zeros(3, 9)
    table[:, [3, 4, 5, 6]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    histories = [np.array([3]), np.array([7, 4, 8]), np.array([2, 8])]
    return table_scorer(table), histories, np.array([4, 4, 6])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 100, 4]),
        ({"seen_targets": "missed"}, [1, 100, 4]),
        ({"seen_targets": "ranked"}, [1, 2, 4]),
        ({"exclude_seen": False}, [2, 2, 4]),
        ({"exclude_seen": False, "seen_targets": "missed"}, [2, 2, 4]),
    ],
)
def test_a_target_that_repeats_is_missed_or_ranked_as_the_protocol_says(
    repeating, settings, expected
):
    config = EvaluationConfig(ks=[1, 2, 99], **settings)
    ranks = rank_histories(*repeating, config).ranks
    assert ranks.tolist() == expected
    protocol = describe_protocol(config, 7, 3)
    assert protocol["seen_targets"] == ("missed" if 100 in expected else "ranked")
    assert evaluate(*repeating, config)["hit_rate@99"] == sum(r < 100 for r in expected) / 3


def test_both_conventions_and_first_time_targets_are_measured(repeating):
    config = EvaluationConfig(ks=[2])
    popularity = np.ones(9, dtype=int)
    found = evaluate_in_detail(*repeating, config, popularity).seen_targets
    assert (found["num_histories"], found["share"]) == (1, 1 / 3)
    hit_rates = {name: found[name]["hit_rate@2"] for name in ("missed", "ranked", "first_time")}
    assert hit_rates == {"missed": 1 / 3, "ranked": 2 / 3, "first_time": 1 / 2}
    everything = EvaluationConfig(ks=[2], exclude_seen=False)
    assert "missed" not in evaluate_in_detail(*repeating, everything, popularity).seen_targets
    scorer, histories, targets = repeating
    none = evaluate_in_detail(scorer, histories[:1], targets[:1], config, popularity)
    assert none.seen_targets == {"num_histories": 0, "share": 0.0}


def test_nobody_is_shown_what_is_missed(repeating):
    for seen_targets, shown in (("missed", 3), ("ranked", 4)):
        config = EvaluationConfig(ks=[5], seen_targets=seen_targets)
        top_ids = rank_histories(*repeating, config, num_top=1).top_ids
        # Of the second history 4 has been seen, but 3 and 5 have not.
        assert top_ids[1].tolist() == [3]
        second = rank_histories(*repeating, config, num_top=2).top_ids[1].tolist()
        assert second == [3, 5 if shown == 3 else 4]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_follow_the_same_rule(name):
    histories = [np.array([2, 3, 4]), np.array([4, 2, 3]), np.array([3, 4, 2, 4])]
    targets = np.array([3, 5, 3])
    scorer = BASELINES[name](histories, 6)
    ranks = rank_histories(scorer, histories, targets, EvaluationConfig(ks=[5])).ranks
    ranked = EvaluationConfig(ks=[5], seen_targets="ranked")
    others = rank_histories(scorer, histories, targets, ranked).ranks
    assert [rank > 5 for rank in ranks.tolist()] == [True, False, True]
    assert max(others.tolist()) <= 4


def test_seen_items_are_candidates_where_the_protocol_says_so(scorer, split):
    left_out, kept = (
        rank_histories(
            scorer,
            *split,
            EvaluationConfig(ks=[5], exclude_seen=exclude_seen, seen_targets="ranked"),
        ).ranks
        for exclude_seen in (True, False)
    )
    assert (left_out <= kept).all()
    assert (left_out < kept).any()


def test_sampled_ranks_are_among_the_negatives_only(scorer, split, popularity):
    sampled = {"candidates": "sampled", "num_negatives": 31, "seen_targets": "ranked"}
    config = EvaluationConfig(ks=[5], **sampled)
    ranks = rank_histories(scorer, *split, config, popularity).ranks
    assert ranks.max() <= 32
    other = EvaluationConfig(ks=[5], **sampled, seed=1)
    assert not torch.equal(ranks, rank_histories(scorer, *split, other, popularity).ranks)


def test_detail_agrees_with_the_quick_metrics_and_its_parts_add_up(scorer, split, popularity):
    histories, targets = split
    config = EvaluationConfig(ks=[5, 20])
    detail = evaluate_in_detail(scorer, histories, targets, config, popularity)
    quick = evaluate(scorer, histories, targets, config)
    assert quick.items() <= detail.metrics.items()
    assert quick["ndcg@20"] == pytest.approx(ndcg(detail.ranks, 20).item(), rel=1e-12)
    for groups in (detail.by_popularity, detail.by_length):
        assert sum(group["num_histories"] for group in groups.values()) == 53
        hits = sum(group["num_histories"] * group["hit_rate@20"] for group in groups.values())
        assert hits / 53 == pytest.approx(quick["hit_rate@20"])
    for name, (low, high) in detail.intervals.items():
        assert low <= detail.metrics[name] <= high


def test_groups_hold_the_histories_their_names_say(scorer, split, popularity):
    histories, targets = split
    detail = evaluate_in_detail(scorer, *split, EvaluationConfig(ks=[20]), popularity)
    short = torch.tensor([5 <= len(history) <= 9 for history in histories])
    assert detail.by_length["5-9"]["hit_rate@20"] == hit_rate(detail.ranks[short], 20).item()
    names = [
        "100-999" if n >= 100 else "10-99" if n >= 10 else "1-9" if n else "0"
        for n in popularity[targets]
    ]
    counted = {name: group["num_histories"] for name, group in detail.by_popularity.items()}
    assert counted == Counter(names)


def test_coverage_is_of_what_would_be_recommended(table_scorer, popularity):
    table = torch.zeros(2, 12)
    table[0, [3, 4, 5]] = torch.tensor([3.0, 2.0, 1.0])
    table[1, [3, 4, 6]] = torch.tensor([3.0, 2.0, 1.0])
    histories, targets = [np.array([3]), np.array([7])], np.array([8, 9])
    config = EvaluationConfig(ks=[1, 2])
    detail = evaluate_in_detail(table_scorer(table), histories, targets, config, popularity[:12])
    assert detail.metrics["coverage@1"] == 2 / 10  # items 4 and 3
    assert detail.metrics["coverage@2"] == 3 / 10  # items 4, 5 and 3, 4


def test_the_protocol_is_stated_in_full(scorer, split, popularity):
    config = EvaluationConfig(ks=[5], candidates="sampled", num_negatives=31, seed=4)
    protocol = evaluate_in_detail(scorer, *split, config, popularity).to_dict()["protocol"]
    assert protocol == {
        "candidates": "sampled",
        "is_sampled": True,
        "num_candidates": 32,
        "num_items": 209,
        "num_histories": 53,
        "exclude_seen": True,
        "seen_targets": "missed",
        "ties": "against the model, within 9.5e-07 of the largest absolute score",
        "ks": [5],
        "num_bootstrap_samples": 1_000,
        "seed": 4,
    }


def test_no_histories_are_an_error(scorer):
    with pytest.raises(ValueError, match="there are no histories to evaluate"):
        evaluate(scorer, [], np.array([]), EvaluationConfig(ks=[5]))


def test_sampled_candidates_need_the_popularity(scorer, split):
    with pytest.raises(ValueError, match="candidates: sampled draws by popularity"):
        evaluate(scorer, *split, EvaluationConfig(ks=[5], candidates="sampled"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": []}, r"ks must be different numbers from 1, such as \[5, 10\], got \[\]"),
        ({"ks": [0, 5]}, r"got \[0, 5\]"),
        ({"ks": [5, 5]}, r"got \[5, 5\]"),
        ({"candidates": "few"}, "candidates must be full or sampled, got 'few'"),
        ({"candidates": "sampled", "exclude_seen": False}, "exclude_seen must be true, got false"),
        ({"seen_targets": "hit"}, "seen_targets must be one of missed, ranked, got 'hit'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_negatives": -1}, "num_negatives must be at least 1, got -1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(Exception, match=message):
        EvaluationConfig(**({"ks": [10]} | settings))


MEASURE = """
import sys
import numpy as np, torch
from accelerate import PartialState
from bert4rec_hf.evaluation import BASELINES, EvaluationConfig, evaluate_in_detail

folder, num_processes = sys.argv[1:]
state = PartialState(cpu=True)
assert state.num_processes == int(num_processes)
generator = np.random.default_rng(0)
histories = [generator.integers(2, 97, size=size) for size in generator.integers(2, 30, size=41)]
targets, popularity = generator.integers(2, 97, size=41), generator.integers(1, 9, size=97)
scorer = BASELINES["item_knn"](histories, 97)
config = EvaluationConfig(ks=[5, 10], batch_size=7)
detail = evaluate_in_detail(scorer, histories, targets, config, popularity)
torch.save([detail.ranks, detail.to_dict()], f"{folder}/{state.process_index}-{num_processes}.pt")
"""


def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    alone = {}
    together = [
        {**address, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MEASURE, str(tmp_path), num_processes], env=os.environ | settings
        )
        for settings, num_processes in [(alone, "1"), (together[0], "2"), (together[1], "2")]
    ]
    assert [process.wait(timeout=100) for process in running] == [0, 0, 0]
    ranks, results = torch.load(tmp_path / "0-1.pt")
    for index in (0, 1):
        other_ranks, other_results = torch.load(tmp_path / f"{index}-2.pt")
        assert torch.equal(ranks, other_ranks)
        assert results == other_results
