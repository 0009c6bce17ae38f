"""Pictures of what was measured, beside the cards that show them; they need matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from bert4rec_hf.lab.cards.report import configurations, describe_configuration
from bert4rec_hf.lab.statistics.scaling_laws import MEASURES, abscissa, read_law

COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")

MOST_COLUMNS = 3
"""Panels side by side; more go below."""


def plot_comparison(results: dict[str, Any], path: Path) -> None:
    """Draw the metric of every run of a comparison, and how iLoRA mixes experts by segment.

    Args:
        results: As `compare_folders` returns them.
        path: The picture to write.
    """
    from matplotlib.figure import Figure  # an extra, and not needed to train

    mixed = {name: runs[0] for name, runs in results["runs"].items() if "gates" in runs[0]}
    # A constant gate is the same for all segments and says nothing; but for rounding, it tells 0.
    mixed = {name: run for name, run in mixed.items() if run["experts"]["information_bits"] > 1e-6}
    figure = Figure(figsize=(5 + 4.5 * len(mixed), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(mixed), squeeze=False)[0]
    names = list(results["runs"])
    for place, name in enumerate(names):
        values = [run["metrics"]["ndcg@10"] for run in results["runs"][name]]
        axes[0].plot([place] * len(values), values, "o", color=COLORS[0], alpha=0.5)
        axes[0].plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color=COLORS[2], lw=2)
    axes[0].set_xticks(range(len(names)), [name.partition("-")[2] for name in names], rotation=20)
    axes[0].set_ylabel("NDCG@10 on test")
    axes[0].set_title("a dot per seed, the mean as a line", fontsize=9)
    for axis, (name, run) in zip(axes[1:], mixed.items(), strict=True):
        gates = np.array(list(run["gates"].values()))  # (segments, experts)
        for expert, weights in enumerate(gates.T):
            bottom = gates[:, :expert].sum(axis=1)
            color = COLORS[expert % len(COLORS)]
            axis.bar(range(len(gates)), weights, bottom=bottom, color=color, width=0.8)
        axis.set_xticks(range(len(gates)), run["gates"], rotation=20)
        axis.set_ylabel("mean gate weight, by expert")
        axis.set_title(f"{name}, seed {run['seed']}", fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def plot_study(results: dict[str, Any], path: Path) -> None:
    """Draw how much each setting of a search matters, and every trial over the values it had.

    Args:
        results: As `run_search` returns them.
        path: The picture to write.
    """
    from matplotlib.figure import Figure  # an extra, and not needed to train
    from matplotlib.ticker import MaxNLocator

    ranges = results["search"]["ranges"]
    metric = results.get("metric", "ndcg@10").replace("ndcg", "NDCG")
    ended = [trial for trial in results["trials"] if trial["state"] == "complete"]
    num_rows = -(-(1 + len(ranges)) // MOST_COLUMNS)
    num_columns = min(1 + len(ranges), MOST_COLUMNS)
    figure = Figure(figsize=(3.2 * num_columns, 3 * num_rows), layout="constrained")
    first, *others = figure.subplots(num_rows, num_columns, squeeze=False).flat
    names = sorted(ranges, key=lambda name: results["importances"].get(name, 0))
    shares = [100 * results["importances"].get(name, 0) for name in names]
    first.barh([name.partition(".")[2] for name in names], shares, color=COLORS[0])
    first.set_xlabel("importance (%)")
    for axis, (name, values) in zip(others, ranges.items(), strict=False):
        tried = [trial["values"][name] for trial in ended]
        axis.plot(tried, [trial["value"] for trial in ended], "o", color=COLORS[0], alpha=0.6)
        if values.get("log"):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")  # or they would lie over each other
        elif all(isinstance(value, int) for value in tried):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel(name)
        axis.set_ylabel(f"{metric} on validation")
    for axis in others[len(ranges) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def plot_scaling(results: dict[str, Any], path: Path) -> None:
    """Draw loss and NDCG@10 over encoder parameters and over training operations, with their laws.

    Args:
        results: As `run_scaling` returns them.
        path: The picture to write.
    """
    from matplotlib.figure import Figure  # an extra, and not needed to train

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    rows = figure.subplots(2, 2, sharey="row")
    fitted_to = {"encoder": "largest budget", "compute": "all budgets"}
    budgets = sorted({point["max_steps"] for point in results["points"]})
    for axes, measure in zip(rows, MEASURES, strict=True):
        for axis, name in zip(axes, ("encoder", "compute"), strict=True):
            for color, budget in zip(COLORS, budgets, strict=False):
                runs = [point for point in results["points"] if point["max_steps"] == budget]
                x = [abscissa(point, name) for point in runs]
                values = [point["test"][measure] for point in runs]
                axis.plot(x, values, "o", color=color, alpha=0.6, label=f"{budget:,} steps")
            for law in results["laws"]:
                if (law["measure"], law["of"]) == (measure, [name]):
                    x = np.geomspace(*_ends(results["points"], name), 100)
                    line = read_law(law).predict(x[:, None])[0]
                    axis.plot(x, line, color="black", lw=1, label=f"law, {fitted_to[name]}")
            axis.set_xscale("log")
            axis.set_xlabel(
                {
                    "encoder": "encoder parameters",
                    "compute": "training operations (multiply-adds count two)",
                }[name]
            )
        axes[0].set_ylabel({"loss": "cross-entropy on test (nats)"}.get(measure, "NDCG@10 on test"))
    for axis in rows.flat:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _ends(points: list[dict[str, Any]], name: str) -> tuple[float, float]:
    values = [abscissa(point, name) for point in points]
    return min(values), max(values)


def plot_configurations(results: dict[str, Any], path: Path) -> None:
    """Draw throughput and peak memory of each configuration of a benchmark.

    Args:
        results: As `scripts/benchmark.py` writes them.
        path: The picture to write.
    """
    from matplotlib.figure import Figure  # an extra, and not needed to train

    rows = list(configurations(results))
    described = [describe_configuration(contestant) for contestant, _ in rows]
    names = [", ".join(words) for words in described]
    adapters = list(dict.fromkeys(adapter for *_, adapter in described))
    colors = [COLORS[adapters.index(adapter)] for *_, adapter in described]
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(rows)), layout="constrained")
    fast, lean = figure.subplots(1, 2, sharey=True)
    rates = np.array([row["histories_per_second"] for _, row in rows])
    low, median, high = rates.T
    fast.barh(names, median, xerr=[median - low, high - median], color=colors)
    fast.set_xlabel("histories per second (lines: quartiles)")
    lean.barh(names, [row["peak_memory_bytes"] / 1e6 for _, row in rows], color=colors)
    lean.set_xlabel("peak memory (MB)")
    fast.invert_yaxis()
    figure.savefig(path, dpi=120, metadata={"Software": None})
