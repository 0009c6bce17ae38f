import copy

import pytest
from huggingface_hub import ModelCard

from bert4rec_hf.hub.card import describe_split, render_card, render_summary

PROTOCOL = {
    "candidates": "full",
    "is_sampled": False,
    "num_candidates": 61,
    "num_items": 61,
    "num_histories": 7,
    "exclude_seen": True,
    "seen_targets": "missed",
}


def evaluation(hit_rate, ndcg):
    metrics = {"hit_rate@10": hit_rate, "ndcg@10": ndcg, "coverage@10": 0.75}
    group = {"num_histories": 7, "hit_rate@10": hit_rate, "ndcg@10": ndcg}
    return {
        "metrics": metrics,
        "intervals": {
            name: [metrics[name] - 0.01, metrics[name] + 0.02] for name in list(metrics)[:2]
        },
        "by_popularity": {"10-99": group},
        "by_length": {"5-9": group},
        "protocol": PROTOCOL,
    }


@pytest.fixture
def results():
    return {
        "run": "tiny-bert4rec",
        "experiment": {
            "training": {"seed": 3, "metric": "ndcg@10"},
            "card": {
                "dataset_name": "Tiny",
                "dataset_license": "none",
                "published": [
                    {"model": "Other", "hit_rate@10": 0.5, "ndcg@10": 0.3, "source": "A paper"}
                ],
            },
        },
        "parameters": {"total": 12345, "item_embeddings": 2345, "encoder": 10000},
        "training": {
            "step": 1500,
            "best_step": 1200,
            "best_metric": 0.31,
            "train_seconds": 20.0,
            "histories": 3000,
        },
        "dataset": {
            "after": {"users": 7, "items": 61, "interactions": 99},
            "lengths": {"mean": 14.14, "median": 12.0, "max": 30},
            "settings": {"split": "leave_one_out", "validation_users": 0, "min_interactions": 5},
            "tied_timestamps": 0.25,
            "splits": {"test": {"targets not in train": 2}},
            "titles": 0,
            "fingerprint": "feed",
            "vocabulary_fingerprint": "beef",
            "best_possible": {"hit_rate@10": 0.8},
        },
        "test": evaluation(0.4321, 0.2109),
        "validation": evaluation(0.45, 0.31),
        "baselines": {"popularity": evaluation(0.1234, 0.0567)},
        "share_of_best": {"hit_rate@10": 0.540125},
        "device": {"type": "cpu", "name": "A processor", "threads": 2},
        "num_processes": 1,
        "commit": "abc123",
        "versions": {"python": "3.11", "torch": "2.13"},
    }


@pytest.mark.parametrize(
    "line",
    [
        "| **tiny-bert4rec** | **0.4321** | 0.4221 – 0.4521 | **0.2109** | 0.2009 – 0.2309 |",
        "| popularity (baseline) | 0.1234 | 0.1134 – 0.1434 | 0.0567 | 0.0467 – 0.0767 |",
        "| Other (published: A paper) | 0.5000 | | 0.3000 | |",
        "hit_rate@10 = 0.8000, of which this one reaches 54 %.",
        "| time | 20 s, 150 histories/s |",
        "| device | 1 × A processor, threads: 2 |",
        "| seed, commit | 3, `abc123` |",
        "| steps | 1,500, the best validation ndcg@10 (0.3100) at step 1,200 |",
        "7 users, 61 items, 99 interactions; histories of 14.1 items on average",
        "5-core filtered. Tied timestamps: 25.0%.",
        "Full ranking over all 61 items.",
        "| 10-99 | 7 | 0.4321 | 0.2109 |",
    ],
)
def test_what_was_measured_stands_in_the_card(results, line):
    assert line in render_card(results)


def test_the_metadata_says_what_a_hub_wants_to_know(results):
    data = ModelCard(render_card(results)).data
    assert (data["library_name"], data["license"]) == ("transformers", "mit")
    expected = {"recommendation", "sequential-recommendation", "recsys", "next-item-prediction"}
    assert expected | {"bert4rec"} <= set(data.tags)
    by_metric = {each.metric_type: each for each in data.eval_results}
    assert by_metric["ndcg@10"].metric_value == 0.2109
    assert by_metric["ndcg@10"].metric_args["candidates"] == "full"
    assert by_metric["ndcg@10"].dataset_name == "Tiny"


def test_sampled_ranking_is_marked(results):
    sampled = copy.deepcopy(results)
    sampled["test"]["protocol"] |= {
        "is_sampled": True,
        "candidates": "sampled",
        "num_candidates": 101,
    }
    assert "**Sampled ranking**: 100 negatives" in render_card(sampled)
    assert "sampled ranking: not comparable" in render_summary(sampled)
    assert "ampled ranking" not in render_card(results)


@pytest.mark.parametrize(
    ("data", "model", "text"),
    [
        ({"prefix_view_ratio": 0.9, "prefix_ratio": 1.0}, {}, "90% of the training views are caus"),
        ({}, {"is_causal": True}, "causal, by `is_causal`: items see themselves and older ones"),
        ({"prefix_view_ratio": 0.9, "prefix_ratio": 0.5}, {}, None),
        ({"prefix_view_ratio": 0.0, "prefix_ratio": 1.0}, {}, None),
    ],
)
def test_a_card_says_where_training_reads_in_one_direction_only(results, data, model, text):
    results["experiment"] |= {"data": data, "model": model}
    card = render_card(results)
    assert "| directions |" not in card if text is None else f"| directions | {text}" in card


def test_a_collapse_stands_in_the_card_and_in_the_summary(results):
    text = "warning: all lists of ten together are of 12 items, while the targets are 3,400 "
    counts = {"num_recommended": 12, "num_targets": 3_400, "num_items": 90_000}
    for is_collapsed in (True, False):
        results["test"]["variety"] = counts | {"is_collapsed": is_collapsed}
        assert (text in render_card(results)) == is_collapsed
        assert (text in render_summary(results)) == is_collapsed


def with_repeats(measured, share):
    """A split in which so many targets repeat, its numbers all different."""
    numbers = {"missed": 0.4321, "ranked": 0.4876, "first_time": 0.4567}
    found = {name: {"hit_rate@10": value, "ndcg@10": value / 2} for name, value in numbers.items()}
    return measured | {"seen_targets": {"num_histories": 12, "share": share, **found}}


def test_where_targets_repeat_the_card_has_both_conventions_and_first_time_targets(results):
    results["test"] = with_repeats(results["test"], 0.07)
    results["baselines"]["popularity"] = with_repeats(results["baselines"]["popularity"], 0.07)
    card = render_card(results)
    assert "left out of the ranking; a target that repeats one is a miss (7.0% do); ties" in card
    assert "7.0% of the targets (12) repeat an item of their history" in card
    head = "| | all targets, those that repeat missed | all targets, those that repeat ranked |"
    assert f"{head} first-time targets alone |\n|---|---|---|---|\n" in card
    numbers = "0.4321 / 0.2160 | 0.4876 / 0.2438 | 0.4567 / 0.2283"
    assert f"| tiny-bert4rec | {numbers} |\n| popularity | {numbers} |\n" in card
    (line,) = [line for line in render_summary(results).splitlines() if "repeat" in line]
    assert line.startswith("7.0% of the targets repeat an item of their history (HR@10 / NDCG@10")
    assert "first-time targets alone: 0.4567 / 0.2283)" in line


def test_where_few_targets_repeat_their_share_is_enough(results):
    results["test"] = with_repeats(results["test"], 0.004)
    assert "a target that repeats one is a miss (0.4% do)" in render_card(results)
    assert "first-time" not in render_card(results)
    assert "repeat" not in render_summary(results)


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ({"seen_targets": "ranked"}, "; a target that repeats one is ranked (how many do was not"),
        ({"exclude_seen": False}, "candidates like all others, also where the target repeats one"),
    ],
)
def test_a_card_names_the_convention(results, protocol, text):
    results["test"]["protocol"] = PROTOCOL | protocol
    assert text in render_card(results)


def test_a_card_names_teachers(results):
    taught = {"teachers": ["runs/a/model", "runs/b/model"], "teacher_weight": 0.5}
    assert "teachers" not in render_card(results)
    results["experiment"]["training"] |= taught
    card = render_card(results)
    assert "| teachers | runs/a/model, runs/b/model: their averaged predictions are 50 % of" in card


def test_names_that_others_chose_stay_names(results):
    results["experiment"]["card"]["dataset_name"] = "films|books\n---\n<script>x</script>"
    results["experiment"]["card"]["dataset_license"] = "a `b` <c>"
    results["experiment"]["card"]["published"][0]["model"] = "x | y"
    results["experiment"]["data"] = {"dataset": "```\n# not a title"}
    card = render_card(results)
    assert "trained on films\\|books --- &lt;script&gt;x&lt;/script&gt;." in card
    assert "The data: a 'b' &lt;c&gt;." in card
    assert "| x \\| y (published: A paper) | 0.5000 |" in card
    text = ModelCard(card).text
    assert "<script>" not in text.replace(text.split("```yaml")[1].split("```")[0], "")
    assert text.count("```") % 2 == 0
    assert "\n# not a title" not in text
    assert ModelCard(card).data.eval_results[0].dataset_name.startswith("films|books")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"split": "leave_one_out", "validation_users": 0}, r"`[:-2]`"),
        ({"split": "leave_one_out", "validation_users": 2048}, "all but 2,048 users"),
        ({"split": "by_user", "test_users": 50, "validation_users": 9}, "50 users test"),
        ({"split": "given"}, "that of the source"),
        ({"split": "given_next"}, "that of the source in time; targets are the first items"),
        ({"split": "temporal", "test_last": "2d"}, "the last 2d test"),
        (
            {"split": "temporal", "validation_time": "2015-01-01", "test_time": "2016"},
            "from 2016 on",
        ),
    ],
)
def test_each_split_is_told_in_words(settings, text):
    unused = {"validation_users": 0, "test_users": 0, "validation_time": "", "test_time": ""}
    assert text in describe_split({"settings": unused | settings})


def test_the_summary_lines_up_model_and_baselines(results):
    assert render_summary(results).splitlines() == [
        "test           hit_rate@10  ndcg@10  coverage@10",
        "tiny-bert4rec  0.4321       0.2109   0.7500",
        "popularity     0.1234       0.0567   0.7500",
        "hit_rate@10: 54% of the best that any model can expect here",
    ]


@pytest.mark.parametrize(
    ("difference", "p_value", "verdict"),
    [
        (0.0105, 0.0002, "verdict: beats item-kNN by 5% (NDCG@10, p = 0.0002)"),
        (
            -0.0420,
            0.01,
            "verdict: below item-kNN by 20% (NDCG@10, p = 0.01); do not ship",
        ),
        (0.0105, 0.31, "verdict: no significant difference from item-kNN (NDCG@10, p = 0.31)"),
    ],
)
def test_the_summary_ends_with_a_verdict(results, difference, p_value, verdict):
    results["baselines"]["item_knn"] = evaluation(0.3, 0.21)
    results["beyond_item_knn"] = {"ndcg@10": {"difference": difference, "p_value": p_value}}
    assert render_summary(results).splitlines()[-1].startswith(verdict)


def test_a_card_shows_all_targets_of_a_history_where_a_split_keeps_them(results):
    assert "recall@10" not in render_card(results)
    for share, each in ((0.25, results["test"]), (0.125, results["baselines"]["popularity"])):
        each["target_sets"] = {"num_targets": 3.25, "recall@10": share, "ndcg@10": share / 2}
    card = render_card(results)
    assert "several items of a user, 3.2 on average" in card
    assert "| | recall@10 | ndcg@10 |" in card
    assert "| tiny-bert4rec | 0.2500 | 0.1250 |" in card
    assert "| popularity | 0.1250 | 0.0625 |" in card
    summary = render_summary(results)
    assert "all 3.2 targets of a history: recall@10 0.2500, ndcg@10 0.1250" in summary
