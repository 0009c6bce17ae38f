"""The model card: every figure in it is taken from a results file, none is typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bert4rec_hf.data.markdown import escape_all, fence
from bert4rec_hf.modeling.publishing import TAGS

FOLDER = "path/to/this/folder"
"""What the code in a card loads; a push puts the name of the repository in its place."""

TEMPLATE = Path(__file__).with_name("template.md")
PROTOCOL_KEYS = ("candidates", "num_candidates", "exclude_seen", "seen_targets")
NOTABLE_REPEATS = 0.005
"""Share of targets that repeat an item of their history from which either convention is shown."""

CONVENTIONS = {
    "missed": "all targets, those that repeat missed",
    "ranked": "all targets, those that repeat ranked",
    "first_time": "first-time targets alone",
}
SPLIT_TEXTS = {
    "leave_one_out": "leave-one-out, nobody trains on the last two items (`[:-2]`)",
    "leave_one_out_with_group": "leave-one-out; all but {validation_users:,} users train on all "
    "items but the last (`[:-1]`), those on all but the last two",
    "temporal": "temporal; training ends at {validation_time}, and targets are the first items "
    "from {test_time} on",
    "temporal_end": "temporal; the last {test_last} test, and targets are the first items in them",
    "by_user": "by user; {test_users:,} users test and do not train",
    "given": "that of the source",
    "given_next": "that of the source in time; targets are the first items of each part",
}


def render_card(results: dict[str, Any]) -> str:
    """Fill the template with what was measured.

    Args:
        results: As `run_experiment` writes them to `results.json`.

    Returns:
        Markdown with the metadata a model hub reads.
    """
    settings = yaml.safe_dump(results["experiment"], sort_keys=False).strip()
    metadata = describe_model(results)
    results = escape_all(results)
    card = ModelCard.from_template(
        metadata,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        interval=interval,
        repeats_text=render_repeats(results),
        sets_text=render_target_sets(results),
        collapse_text=describe_collapse(results["test"]),
        directions_text=describe_directions(results["experiment"]),
        intro=describe_origin(results["experiment"]),
        protocol_text=describe_protocol(results),
        dataset_text=describe_dataset(results["dataset"]),
        experiment_yaml=fence(settings),
        **results,
    )
    return str(card)


def describe_model(results: dict[str, Any]) -> ModelCardData:
    """The metadata block; its metrics carry the protocol they were measured under."""
    dataset = results["experiment"]["card"]["dataset_name"]
    adapter = results["experiment"].get("adapter")
    return ModelCardData(
        model_name=results["run"],
        license="mit",
        library_name="peft" if adapter else "transformers",
        tags=[*TAGS, adapter["tuner"]] if adapter else TAGS,
        eval_results=[
            EvalResult(
                task_type="sequential-recommendation",
                dataset_type=results["run"].rpartition("-")[0],
                dataset_name=dataset,
                dataset_split="test",
                metric_type=name,
                metric_value=round(value, 6),
                metric_args={key: results["test"]["protocol"][key] for key in PROTOCOL_KEYS},
            )
            for name, value in sorted(results["test"]["metrics"].items())
            if name.endswith("@10")
        ],
    )


def describe_origin(experiment: dict[str, Any]) -> str:
    """What the model is, and what it was trained on."""
    dataset = experiment["card"]["dataset_name"]
    base, adapter = experiment.get("base"), experiment.get("adapter")
    if base is None:
        return f"trained on {dataset}."
    if adapter is None:
        return f"trained further on {dataset}, from the model folder `{base['model']}`."
    return (
        f"adapted to {dataset}: the folder holds an adapter (`{adapter['tuner']}`) for the frozen "
        f"base model `{base['model']}`."
    )


def describe_directions(experiment: dict[str, Any]) -> str:
    """From which sides items were read in training, where that is less than the name says.

    With a `prefix_ratio` of 1 each prefix is one item longer than the one before, so that an item
    sees itself and older ones only. At test time a history is read from both sides.
    """
    data = experiment.get("data", {})
    if experiment.get("model", {}).get("is_causal"):
        return "causal, by `is_causal`: items see themselves and older ones"
    if data.get("prefix_view_ratio") and data.get("prefix_ratio") == 1:
        share = f"{data['prefix_view_ratio']:.0%}"
        return f"{share} of the training views are causal, by `prefix_ratio: 1`; the others are not"
    return ""


def describe_protocol(results: dict[str, Any]) -> str:
    """The protocol in a sentence or two, so that nobody compares what cannot be compared."""
    protocol = results["test"]["protocol"]
    candidates = (
        f"**Sampled ranking**: {protocol['num_candidates'] - 1} negatives per history, drawn by "
        "popularity among unseen items. Not comparable with full ranking."
        if protocol["is_sampled"]
        else f"Full ranking over all {protocol['num_items']:,} items."
    )
    seen = "left out of the ranking" if protocol["exclude_seen"] else "candidates like all others"
    return (
        f"{candidates} Items of the user's history are {seen}{describe_seen_targets(results)}; "
        f"ties count against the model. "
        f"{protocol['num_histories']:,} histories, split: {describe_split(results['dataset'])}."
    )


def describe_seen_targets(results: dict[str, Any]) -> str:
    """What a target that repeats an item of the history comes to, and how many do."""
    protocol, found = results["test"]["protocol"], results["test"].get("seen_targets")
    # Files of before version 0.2 do not have it.
    known = "how many do was not recorded" if found is None else f"{found['share']:.1%} do"
    if not protocol["exclude_seen"]:
        return f", also where the target repeats one ({known})"
    is_missed = protocol["seen_targets"] == "missed"
    return f"; a target that repeats one is {'a miss' if is_missed else 'ranked'} ({known})"


def render_repeats(results: dict[str, Any]) -> str:
    """Either convention and first-time targets alone, where enough targets repeat; else nothing."""
    contestants = {results["run"]: results["test"]} | results["baselines"]
    found = results["test"].get("seen_targets", {})
    if found.get("share", 0) <= NOTABLE_REPEATS:
        return ""
    names = [name for name in CONVENTIONS if name in found]
    lines = [
        f"{found['share']:.1%} of the targets ({found['num_histories']:,}) repeat an item of their "
        "history, and numbers of different conventions cannot be compared. HR@10 / NDCG@10 of",
        "",
        f"| | {' | '.join(CONVENTIONS[name] for name in names)} |",
        f"|{'---|' * (1 + len(names))}",
    ]
    for contestant, evaluation in contestants.items():
        cells = [headline(evaluation["seen_targets"][name]) for name in names]
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_target_sets(results: dict[str, Any]) -> str:
    """Recall and NDCG of all targets of a history, where the split keeps them; else nothing."""
    found = results["test"].get("target_sets", {})
    names = [name for name in found if name != "num_targets"]
    if not names:
        return ""
    lines = [
        f"The split holds out several items of a user, {found['num_targets']:.1f} on average. With "
        "all of them as targets, each counted once:",
        "",
        f"| | {' | '.join(names)} |",
        f"|{'---|' * (1 + len(names))}",
    ]
    for contestant, evaluation in (
        {results["run"]: results["test"]} | results["baselines"]
    ).items():
        cells = [f"{evaluation['target_sets'][name]:.4f}" for name in names]
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summarize_target_sets(evaluation: dict[str, Any]) -> list[str]:
    """A line on all targets of a history, where the split keeps them."""
    found = evaluation.get("target_sets", {})
    values = [f"{name} {value:.4f}" for name, value in found.items() if name != "num_targets"]
    return (
        [f"all {found['num_targets']:.1f} targets of a history: {', '.join(values)}"]
        if values
        else []
    )


def describe_collapse(evaluation: dict[str, Any]) -> str:
    """A warning where a handful of items is all that is recommended; else nothing.

    >>> variety = {"num_recommended": 12, "num_targets": 3_400, "num_items": 90_000}
    >>> describe_collapse({"variety": {**variety, "is_collapsed": True}})
    'warning: all lists of ten together are of 12 items, while the targets are 3,400 different ones'
    """
    found = evaluation.get("variety", {})
    if not found.get("is_collapsed"):
        return ""
    return (
        f"warning: all lists of ten together are of {found['num_recommended']:,} items, while the "
        f"targets are {found['num_targets']:,} different ones"
    )


def describe_split(dataset: dict[str, Any]) -> str:
    """The split in words, with the convention that decides what it can be compared with."""
    settings = dataset["settings"]
    has_group = settings["split"] == "leave_one_out" and settings["validation_users"]
    name = "leave_one_out_with_group" if has_group else settings["split"]
    name = "temporal_end" if settings.get("test_last") else name
    return SPLIT_TEXTS[name].format(**settings)


def describe_dataset(dataset: dict[str, Any]) -> str:
    """Counts, filters and fingerprint of the prepared dataset."""
    after, lengths, settings = dataset["after"], dataset["lengths"], dataset["settings"]
    ties = dataset["tied_timestamps"]
    core = settings["min_interactions"]
    return (
        f"{after['users']:,} users, {after['items']:,} items, {after['interactions']:,} "
        f"interactions; histories of {lengths['mean']:.1f} items on average, {lengths['median']:g} "
        f"in the median and {lengths['max']:,} at most. "
        f"{f'{core}-core filtered.' if core else 'Not filtered by us.'} "
        f"{'Timestamps unknown' if ties is None else f'Tied timestamps: {ties:.1%}'}. "
        f"{dataset['splits']['test']['targets not in train']:,} test targets never occur in "
        f"training. Fingerprint `{dataset['fingerprint']}`, of the vocabulary "
        f"`{dataset['vocabulary_fingerprint']}`."
    )


def interval(evaluation: dict[str, Any], metric: str) -> str:
    """A confidence interval as text.

    >>> interval({"intervals": {"ndcg@10": [0.1, 0.25]}}, "ndcg@10")
    '0.1000 – 0.2500'
    """
    low, high = evaluation["intervals"][metric]
    return f"{low:.4f} – {high:.4f}"


def render_summary(results: dict[str, Any]) -> str:
    """A short table of the model and the baselines on test, for a terminal."""
    evaluations = {results["run"]: results["test"], **results["baselines"]}
    metrics = [name for name in results["test"]["metrics"] if name.endswith("@10")]
    rows = [["test", *metrics]]
    for name, evaluation in evaluations.items():
        rows.append([name, *(f"{evaluation['metrics'][metric]:.4f}" for metric in metrics)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [
        f"{name}: {share:.0%} of the best that any model can expect here"
        for name, share in results["share_of_best"].items()
        if name in metrics
    ]
    if refit := results.get("refit"):
        lines.append(
            f"these are the numbers of its twin {refit['twin']}; this model was trained on all "
            f"{refit['interactions']:,} interactions, for {results['training']['step']:,} steps"
        )
    if experts := results.get("experts"):
        means = ", ".join(f"{mean:.2f}" for mean in experts["mean"])
        lines.append(
            f"experts: mean gate weights {means}; knowing the user tells "
            f"{experts['information_bits']:.3f} bits about the expert"
        )
    lines += summarize_repeats(results["test"]) + summarize_target_sets(results["test"])
    lines += filter(None, [describe_collapse(results["test"])])
    if results["test"]["protocol"]["is_sampled"]:
        lines.append("sampled ranking: not comparable with full ranking")
    if "beyond_item_knn" in results:
        lines.append(f"verdict: {judge(results)}")
    return "\n".join(lines)


def summarize_repeats(evaluation: dict[str, Any]) -> list[str]:
    """A line on targets that repeat, where they are enough to matter."""
    found = evaluation.get("seen_targets", {})
    if found.get("share", 0) <= NOTABLE_REPEATS:
        return []
    numbers = [
        f"{text}: {headline(found[name])}" for name, text in CONVENTIONS.items() if name in found
    ]
    share = f"{found['share']:.1%} of the targets repeat an item of their history"
    return [f"{share} (HR@10 / NDCG@10 of {'; '.join(numbers)})"]


LUCK = 0.05
"""p-value from which a difference may be luck."""


def judge(results: dict[str, Any], metric: str = "ndcg@10") -> str:
    """Say whether the model is worth shipping: how it compares with item-kNN, untrained."""
    found, knn = results["beyond_item_knn"][metric], results["baselines"]["item_knn"]["metrics"]
    difference, p_value = found["difference"], found["p_value"]
    by = f" by {abs(difference) / knn[metric]:.0%}" if knn[metric] else ""
    test = f"{metric.replace('ndcg', 'NDCG')}, p = {p_value:.2g}"
    if p_value >= LUCK:
        return f"no significant difference from item-kNN ({test}); item-kNN is cheaper"
    if difference > 0:
        return f"beats item-kNN{by} ({test})"
    return f"below item-kNN{by} ({test}); do not ship this model"


def render_results_table(runs: Sequence[dict[str, Any]]) -> str:
    """One line per run for the list of cards: the model, the baselines and the best published.

    Args:
        runs: Contents of results files.
    """
    lines = [
        "| run | seen items | HR@10 / NDCG@10 | popularity | item-kNN | best published |",
        "|---|---|---|---|---|---|",
    ]
    for results in runs:
        name = results["run"]
        baselines = results["baselines"]
        published = results["experiment"]["card"]["published"]
        best = max(published, key=lambda other: other["ndcg@10"], default=None)
        cells = [
            f"[{name}]({name}.md)",
            "left out" if results["test"]["protocol"]["exclude_seen"] else "ranked",
            f"**{headline(results['test']['metrics'])}**",
            headline(baselines["popularity"]["metrics"]),
            headline(baselines["item_knn"]["metrics"]),
            f"{headline(best)}, {best['model']}" if best else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """HR@10 and NDCG@10 as text."""
    return f"{metrics['hit_rate@10']:.4f} / {metrics['ndcg@10']:.4f}"


def write_card(results: dict[str, Any], path: Path) -> None:
    """Render the card of a run into its model folder."""
    path.write_text(render_card(results), encoding="utf-8")
