"""The report: all that was measured, put together; every figure is taken from a results file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bert4rec_hf.hub.card import describe_protocol
from bert4rec_hf.recipe import choose_settings

from .ablation_card import render_changes, render_tried
from .changes import describe_age
from .comparison_card import (
    describe_differences,
    render_comparison,
    split_comparisons,
    table_head,
)
from .lengths_table import render_lengths
from .scaling_card import render_laws, render_parts, render_sizes

Results = dict[str, dict[str, Any]]
"""Contents of results files by name."""

OBJECTIVES = ("full_softmax", "sampled_softmax", "gbce")
"""Contestants of a benchmark that are this package's."""

VARIED = {
    "precision": {"no": "float32"},
    "compile": {"no": "eager"},
    "adapter": {"none": "no adapter"},
}
"""Settings of a contestant that make its configuration, with words for values that need some."""

KINDS = (
    "runs",
    "scaling",
    "benchmarks",
    "comparisons",
    "studies",
    "ablations",
    "tried",
    "lengths",
)
"""Of results: the folders of `model_cards/results/`, where runs lie on top."""

INTRODUCTION = """# What size, precision, compilation and adapters do

To accuracy, throughput, epoch time and memory of BERT4Rec. Rendered by `bert4rec report` from the
files of `model_cards/results/`, which say how each figure was measured; a device that has no file
there has no row here."""

DEVICE_KEYS = ("type", "name", "compute_capability", "capability", "memory_bytes", "has_bf16")


def render_report(results: dict[str, Results]) -> str:
    """Put everything into one Markdown file.

    Args:
        results: By kind: `runs` as `run_experiment` returned them, `scaling` as `run_scaling` did,
            `benchmarks` as `scripts/benchmark.py` wrote them, `comparisons` as `compare_folders`
            returned them, `studies` as `run_search`, `ablations` as `run_ablation`, `lengths`
            as `compare_lengths` did, and `tried` as ideas were noted that are not kept.
    """
    runs, scaling, benchmarks, comparisons, studies, ablations, tried, lengths = (
        results.get(kind, {}) for kind in KINDS
    )
    recipes, adapters = split_comparisons(comparisons)
    sections = [
        INTRODUCTION,
        *render_accuracy(runs, scaling),
        *render_differences("## Recipes, over seeds", recipes),
        *render_ablations(ablations),
        *render_ideas(tried),
        *render_reading(lengths),
        *render_scaling(scaling),
        *render_configurations(benchmarks),
        *render_hardware(benchmarks, list(results.values())),
        *render_profiles(benchmarks),
        *render_differences("## Adapters", adapters),
        *render_searches(studies),
    ]
    return "\n\n".join(sections) + "\n"


def render_accuracy(runs: Results, scaling: Results) -> Iterator[str]:
    """Test metrics by size: of the trained configs, and of the studies of scale."""
    yield "## Accuracy by size"
    yield (
        "On test, each run under the protocol and with the split that its row says; rows that "
        "differ in either, or in the dataset, cannot be compared. Settings are those that "
        "`choose_settings` has for the dataset today, or so many differ."
    )
    rows = [
        f"| [{name}]({name}.md) | {name_protocol(run)} | {compare_with_recipe(run)} | "
        f"{run['parameters']['encoder']:,} | "
        f"{run['parameters']['item_embeddings']:,} | {run['test']['metrics']['hit_rate@10']:.4f} | "
        f"{run['test']['metrics']['ndcg@10']:.4f} | {run['device']['name']} |"
        for name, run in runs.items()
    ]
    head = ["run", "protocol", "settings", "encoder", "item embeddings", "HR@10", "NDCG@10"]
    head.append("device")
    yield "\n".join([*table_head(head), *rows])
    for name, study in scaling.items():
        yield f"[{name}]({name}.md), mean ± standard deviation over seeds:"
        yield from describe_age(study["study"]["experiment"], study.get("changed_since", {}))[:1]
        yield render_sizes(study["points"])


def name_protocol(run: dict[str, Any]) -> str:
    """What decides which numbers a run can be set beside, in a few words."""
    protocol, settings = run["test"]["protocol"], run["dataset"]["settings"]
    words = ["sampled ranking" if protocol["is_sampled"] else "full ranking"]
    words.append(f"seen items {'left out' if protocol['exclude_seen'] else 'ranked'}")
    if protocol["exclude_seen"]:
        words.append(f"repeats {protocol['seen_targets']}")
    if settings["split"] == "leave_one_out":
        words.append("`[:-1]`" if settings["validation_users"] else "`[:-2]`")
    else:
        words.append(f"split {settings['split']}")
    return ", ".join(words)


def compare_with_recipe(run: dict[str, Any]) -> str:
    """Whether a run has the settings that the recipe chooses for its dataset today."""
    dataset, experiment = run["dataset"], run["experiment"]
    train = dataset["splits"]["train"]
    chosen = choose_settings(train["histories"], train["interactions"], dataset["after"]["items"])
    differing = [
        f"{section}.{name}"
        for section, settings in chosen.items()
        for name, value in settings.items()
        if experiment[section].get(name) != value
    ]
    # What the recipe leaves to its default, such as whether the model is causal.
    differing += [name for name in experiment["model"] if name not in chosen["model"]]
    if not differing:
        return "the recipe's"
    return f"{len(differing)} {'differs' if len(differing) == 1 else 'differ'}"


def render_ablations(ablations: Results) -> Iterator[str]:
    """What each part of a recipe is worth."""
    for name, ablation in ablations.items():
        yield f"## What each part gives: {name}"
        yield f"[Validation]({name}.md) of `{ablation['study']['experiment']}`, one thing changed:"
        yield render_changes(ablation)


def render_ideas(tried: Results) -> Iterator[str]:
    """What did not help, so that nobody need try it unknowingly."""
    for name, ideas in tried.items():
        yield f"## Tried and left out: {name}"
        yield (
            f"On {ideas['split']}, one seed, each beside the same training without it; "
            f"{ideas['code']}, around `{ideas['commit']}`. {ideas['device']['name']}."
        )
        yield render_tried(ideas)


def render_reading(lengths: Results) -> Iterator[str]:
    """What reading more of each history is worth, and what it costs."""
    for name, measured in lengths.items():
        yield f"## How much of a history to read: {name}"
        yield (
            "One model on test, which reads so many of the newest items, the mask counted; cost is "
            f"that of the encoder, times the cheapest. {measured['device']['name']}, "
            f"{measured['device'].get('threads', 1)} threads."
        )
        yield render_lengths(measured)


def render_scaling(scaling: Results) -> Iterator[str]:
    """The laws, and what either kind of parameters does."""
    for name, study in scaling.items():
        yield f"## Laws of {name}"
        yield from describe_age(study["study"]["experiment"], study.get("changed_since", {}))[:1]
        yield f"![{name}]({name}.png)"
        yield "\n".join(render_laws(study["laws"]))
        yield "\n".join(render_parts(study["by_doubling"], level=3)).strip()


def render_configurations(benchmarks: Results) -> Iterator[str]:
    """Throughput, epoch time and memory of every configuration, benchmark by benchmark."""
    yield "## Throughput, epoch time and peak memory"
    yield (
        "Medians; a row differs from the others of its table in what its columns say. The epoch "
        "is that of the real dataset at this rate. Peak memory leaves libraries out."
    )
    columns = ["objective", *VARIED, "batch", "trained"]
    head = [*columns, "histories/s", "epoch min", "step ms", "peak MB"]
    for name, benchmark in benchmarks.items():
        if not (rows := list(configurations(benchmark))):
            continue
        shape, plan = benchmark["shape"], benchmark["plan"]
        yield (
            f"### {name}\n\n{benchmark['workload']['name']}, "
            f"{benchmark['workload']['num_items']:,} items; `{shape['name']}`: hidden "
            f"{shape['hidden_size']}, {shape['num_layers']} layers; {benchmark['device']['name']}, "
            f"{plan['threads']} threads, {plan['rounds']} rounds."
        )
        if is_drawn(benchmark):
            yield f"![throughput and peak memory](benchmark-{name}.png)"
        yield "\n".join([*table_head(head), *(_configuration_row(*row) for row in rows)])


def configurations(benchmark: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Contestants of this package that trained, each with its line of the summary."""
    if benchmark["plan"]["mode"] != "train":
        return
    for contestant, row in zip(benchmark["contestants"], benchmark["summary"], strict=True):
        if contestant["contestant"] in OBJECTIVES and row["histories_per_second"]:
            yield contestant, row


def describe_configuration(contestant: dict[str, Any]) -> list[str]:
    """Precision, compilation and adapter in words; results of before know of no adapters."""
    settings = {"adapter": "none"} | contestant["settings"]
    return [words.get(settings[name], settings[name]) for name, words in VARIED.items()]


def is_drawn(benchmark: dict[str, Any]) -> bool:
    """Whether the benchmark is one of configurations, not of other things."""
    described = [describe_configuration(contestant) for contestant, _ in configurations(benchmark)]
    return sum(len(set(values)) > 1 for values in zip(*described, strict=True)) > 1


def _configuration_row(contestant: dict[str, Any], row: dict[str, Any]) -> str:
    epoch = row.get("epoch_seconds")  # results of before know of none
    cells = [
        contestant["contestant"],
        *describe_configuration(contestant),
        contestant["settings"]["batch_size"],
        _share(row.get("trainable_ratio")),
        f"{row['histories_per_second'][1]:,.1f}",
        f"{epoch[1] / 60:,.1f}" if epoch else "–",
        f"{row['step_milliseconds'][1]:,.1f}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def render_hardware(benchmarks: Results, everything: Sequence[Results]) -> Iterator[str]:
    """Every device that has results, what it can do, and its throughput beside the others'."""
    yield "## Hardware"
    devices = find_devices(each for results in everything for each in results.values())
    rows = [
        f"| {device['name']} | {device['type']} | {_ability(device)} | "
        f"{_gb(device.get('memory_bytes'))} | {_yes_or_no(device.get('has_bf16'))} | {count} |"
        for device, count in devices
    ]
    head = ["device", "kind", "capability", "memory GB", "bf16", "results"]
    yield "\n".join([*table_head(head), *rows])
    rates: dict[tuple[str, str, str], dict[str, float]] = {}
    for benchmark in benchmarks.values():
        for contestant, row in configurations(benchmark):
            label = f"{contestant['label']}, batch {contestant['settings']['batch_size']}"
            key = (benchmark["workload"]["name"], benchmark["shape"]["name"], label)
            rates.setdefault(key, {})[benchmark["device"]["name"]] = row["histories_per_second"][1]
    shared = {key: by_device for key, by_device in rates.items() if len(by_device) > 1}
    if shared:
        names = sorted({name for by_device in shared.values() for name in by_device})
        yield "Histories per second of the same configuration:"
        yield "\n".join(
            [
                *table_head(["workload", "shape", "configuration", *names]),
                *(
                    f"| {' | '.join(key)} | "
                    + " | ".join(f"{by[n]:,.1f}" if n in by else "–" for n in names)
                    + " |"
                    for key, by in shared.items()
                ),
            ]
        )


def find_devices(results: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Devices that results were measured on, each with the number of files that name it."""
    counts: dict[str, int] = {}
    devices: dict[str, dict[str, Any]] = {}
    for each in results:
        device = each["device"]
        found = {key: device[key] for key in DEVICE_KEYS if key in device}
        key = json.dumps([found["type"], found["name"]])
        counts[key] = counts.get(key, 0) + 1
        devices[key] = devices.get(key, {}) | found
    return [(devices[key], counts[key]) for key in sorted(counts)]


def _ability(device: dict[str, Any]) -> str:
    return device.get("compute_capability") or device.get("capability") or "not recorded"


def _gb(size: int | None) -> str:
    return f"{size / 1e9:.0f}" if size else "–"


def _yes_or_no(value: bool | None) -> str:
    return {None: "not recorded", True: "yes", False: "no"}[value]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def render_profiles(benchmarks: Results) -> Iterator[str]:
    """What the operations of profiled training steps took, the longest first."""
    rows = [
        f"| {name} | {contestant['label']} | {_operation(operation)} | {operation['calls']} | "
        f"{operation['time_share']:.0%} |"
        for name, benchmark in benchmarks.items()
        for contestant in benchmark["contestants"]
        for operation in contestant.get("operations", [])[:5]
    ]
    if rows:
        yield "## Where the time goes"
        yield "Share of an operation itself in the time of all, of the profiled steps."
        head = ["benchmark", "configuration", "operation", "calls", "time"]
        yield "\n".join([*table_head(head), *rows])


def _operation(operation: dict[str, Any]) -> str:
    """Its name; that of a compiled graph is a number that says nothing."""
    return "compiled graph" if "CompiledFxGraph" in operation["name"] else operation["name"]


def render_differences(heading: str, comparisons: Results) -> Iterator[str]:
    """The table and the verdicts of each comparison."""
    if comparisons:
        yield heading
    for name, comparison in comparisons.items():
        lines = [f"- {line}" for line in describe_differences(comparison)]
        protocol = describe_protocol(comparison | {"test": {"protocol": comparison["protocol"]}})
        title = f"[{name}]({name}.md). {protocol}"
        yield "\n".join([title, "", render_comparison(comparison), "", *lines])


def render_searches(studies: Results) -> Iterator[str]:
    """What was searched for, and found."""
    if studies:
        yield "## Searches for settings"
    for name, study in studies.items():
        best = ", ".join(
            f"`{setting}` {value:.4g}" if isinstance(value, float) else f"`{setting}` {value}"
            for setting, value in study["best"]["values"].items()
        )
        yield (
            f"[{name}]({name}.md): {len(study['trials'])} trials; the best has "
            f"{study['best']['value']:.4f} on validation with {best}."
        )
