"""The card of a comparison: every figure in it is taken from its results file."""

import statistics
from collections.abc import Sequence
from typing import Any

import yaml

from bert4rec_hf.hub.card import describe_dataset, describe_protocol, headline

METRICS = ("hit_rate@10", "ndcg@10")
SIGNIFICANT = 0.05


def render_comparison_card(name: str, results: dict[str, Any]) -> str:
    """Tell in Markdown what was compared, how, and the results.

    Args:
        name: Of the results file, without its ending, and of the plot.
        results: As `compare_folders` returns them.
    """
    versions = ", ".join(f"{library} {number}" for library, number in results["versions"].items())
    experts = render_experts(results)
    lines = [
        f"# {name}",
        "",
        describe_protocol(results | {"test": {"protocol": results["protocol"]}}),
        describe_dataset(results["dataset"]),
        "",
        render_comparison(results),
        "",
        "Mean ± standard deviation over seeds; differences with their 95 % interval and p-value, "
        "by a paired bootstrap over users and seeds.",
        "",
        *(f"- {line}" for line in describe_differences(results)),
        "",
        f"![NDCG@10 of each run{'; gate weights by segment' if experts else ''}]({name}.png)",
        "",
        *render_segments(results),
        *experts,
        "## Runs",
        "",
        *render_runs(results),
        f"Measured at commit `{results['commit']}` on {results['device']['name']}; {versions}.",
        "",
    ]
    return "\n".join(lines)


def render_comparisons(comparisons: dict[str, dict[str, Any]]) -> str:
    """Tables for the list of cards, each with a link to its card.

    Args:
        comparisons: Contents of results files by name.
    """
    return "\n\n".join(
        f"[{name}]({name}.md), on test:\n\n{render_comparison(results)}"
        for name, results in comparisons.items()
    )


def render_seeds(comparisons: dict[str, dict[str, Any]]) -> str:
    """One line per experiment: means over seeds, item-kNN and the best published.

    Args:
        comparisons: Contents of results files by name.
    """
    lines = table_head(["experiment", "seeds", "HR@10", "NDCG@10", "item-kNN", "best published"])
    for comparison, results in comparisons.items():
        for name, runs in results["runs"].items():
            published = runs[0]["experiment"]["card"]["published"]
            best = max(published, key=lambda other: other["ndcg@10"], default=None)
            cells = [
                f"[{name}]({comparison}.md)",
                str(len(runs)),
                *(f"**{spread(runs, metric)}**" for metric in METRICS),
                headline(results["baselines"]["item_knn"]),
                f"{headline(best)}, {best['model']}" if best else "–",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def split_comparisons(
    comparisons: dict[str, dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Separate comparisons of recipes from those where an experiment trains an adapter."""
    adapters = {
        name: results
        for name, results in comparisons.items()
        if any(runs[0]["experiment"].get("adapter") for runs in results["runs"].values())
    }
    recipes = {name: each for name, each in comparisons.items() if name not in adapters}
    return recipes, adapters


def describe_differences(results: dict[str, Any]) -> list[str]:
    """Say of each experiment whether it is better or worse, or whether that may be luck."""
    lines = []
    base = mean_over_seeds(results["runs"][results["against"]], "ndcg@10")
    for name, differences in results["differences"].items():
        found = differences["ndcg@10"]
        verdict = "better than" if found["difference"] > 0 else "worse than"
        if found["p_value"] >= SIGNIFICANT:
            verdict = "not significantly different from"
        lines.append(
            f"{name} is {verdict} {results['against']} in NDCG@10: "
            f"{found['difference'] / base:+.1%}, p = {found['p_value']:.2g}"
        )
    return lines


def render_segments(results: dict[str, Any]) -> list[str]:
    """A table of the metric by segment of users, mean over seeds."""
    segments = results["segments"]
    metric = next(iter(results["runs"].values()))[0]["experiment"]["training"]["metric"]
    heading = ["experiment", *(f"{name} ({count:,})" for name, count in segments.items())]
    lines = [f"## {metric} by segment of users (number of users)", "", *table_head(heading)]
    for name, runs in results["runs"].items():
        means = [statistics.fmean(run["segments"][segment] for run in runs) for segment in segments]
        lines.append(f"| {name} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    return [*lines, ""]


def render_experts(results: dict[str, Any]) -> list[str]:
    """A table of how each iLoRA run mixes its experts; nothing if there is none."""
    heading = [
        "run",
        "bits per user about the expert",
        "experts per user",
        "mean weights",
        "deviation",
    ]
    heading += ["NDCG@10", "with the mean weights for all"]
    rows = []
    for name, runs in results["runs"].items():
        for run in runs:
            if experts := run.get("experts"):
                mean, deviation = (
                    ", ".join(f"{value:.2f}" for value in experts[key])
                    for key in ("mean", "deviation")
                )
                rows.append(
                    f"| {name}, seed {run['seed']} | {experts['information_bits']:.3f} | "
                    f"{experts['effective_experts']:.2f} | {mean} | {deviation} | "
                    f"{run['metrics']['ndcg@10']:.4f} | {run['mean_gate_metrics']['ndcg@10']:.4f} |"
                )
    return ["## Experts", "", *table_head(heading), *rows, ""] if rows else []


def render_runs(results: dict[str, Any]) -> list[str]:
    """Settings and cost of each experiment."""
    lines = []
    for name, runs in results["runs"].items():
        seconds = statistics.fmean(run["train_seconds"] for run in runs)
        steps = ", ".join(f"{run['training']['best_step']:,}" for run in runs)
        commits = ", ".join(
            f"`{commit}`" for commit in dict.fromkeys(run["commit"] for run in runs)
        )
        text = yaml.safe_dump(runs[0]["experiment"], sort_keys=False).strip()
        lines += [
            f"<details><summary>{name}: {seconds:,.0f} s of training on average, best steps "
            f"{steps}, commit {commits}</summary>",
            "",
            f"```yaml\n{text}\n```",
            "",
            "</details>",
            "",
        ]
    return lines


def table_head(heading: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]


def mean_over_seeds(runs: Sequence[dict[str, Any]], metric: str) -> float:
    """Mean of a metric."""
    return statistics.fmean(run["metrics"][metric] for run in runs)


def spread(runs: Sequence[dict[str, Any]], metric: str) -> str:
    """Mean of a metric over seeds ± standard deviation, where there are several."""
    mean = f"{mean_over_seeds(runs, metric):.4f}"
    if len(runs) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(run['metrics'][metric] for run in runs):.4f}"


def render_comparison(results: dict[str, Any]) -> str:
    """A table for a terminal and for Markdown alike: experiments, and the differences to one."""
    against = results["against"]
    lines = [
        "| experiment | seeds | trained | HR@10 | NDCG@10 | NDCG@10 − that of "
        f"{against} [95 %] | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results["runs"].items():
        values = [spread(runs, metric) for metric in METRICS]
        cells = [name, str(len(runs)), f"{runs[0]['parameters']['trainable']:,}", *values, "", ""]
        if name != against:
            found = results["differences"][name]["ndcg@10"]
            low, high = found["interval"]
            cells[-2:] = (
                f"{found['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
                f"{found['p_value']:.2g}",
            )
        lines.append(f"| {' | '.join(cells)} |")
    for name, values in results["baselines"].items():
        cells = [name, "", "0", *(f"{values[metric]:.4f}" for metric in METRICS), "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
