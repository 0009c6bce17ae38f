"""The card of an ablation: every figure in it is taken from its results file."""

from collections.abc import Iterator
from typing import Any

from .changes import describe_age
from .comparison_card import table_head
from .scaling_card import describe_origin


def render_ablation_card(name: str, results: dict[str, Any]) -> str:
    """Tell in Markdown what was changed, and what each change did.

    Args:
        name: Of the results file, without its ending.
        results: As `run_ablation` returns them.
    """
    config = results["study"]
    seeds = len(config["seeds"])
    lines = [
        f"# {name}",
        "",
        f"`{config['experiment']}` with one thing changed at a time, "
        f"{'one seed' if seeds == 1 else f'{seeds} seeds'} each; on validation, full ranking, the "
        f"best validation of each training. {describe_fixed(results['fixed'])}".rstrip(),
        "",
        *describe_age(config["experiment"], results.get("changed_since", {})),
        render_changes(results),
        "",
        *describe_possible(results["points"]),
        describe_origin(results["points"]),
        "",
    ]
    return "\n".join(lines)


def describe_possible(points: list[dict[str, Any]]) -> list[str]:
    """What the best predictor reaches, where it is known, and how much of it each change does."""
    possible = points[0].get("best_possible")
    if possible is None:
        return []
    best = " and ".join(f"{name} = {value:.4f}" for name, value in possible.items())
    shares = [
        f"- {point['change'].replace('_', ' ')}, seed {point['seed']}: "
        + ", ".join(f"{v['hit_rate@10'] / possible['hit_rate@10']:.1%}" for v in validations)
        + f" of the hit rate, with {names} different items recommended"
        for point in points
        if (validations := point["validation"])
        and (names := ", ".join(f"{v['recommended_items@10']:,}" for v in validations))
    ]
    return [
        f"The interactions are generated; the best that any model can expect is {best}. Validation "
        "by validation, that is",
        "",
        *shares,
        "",
    ]


def describe_fixed(fixed: dict[str, Any]) -> str:
    """The settings that all trainings share and the experiment does not have.

    >>> describe_fixed({"training.max_steps": 9})
    'All have `training.max_steps` 9.'
    """
    return f"All have {describe_settings(fixed)}." if fixed else ""


def describe_settings(settings: dict[str, Any]) -> str:
    """Names and values in words."""
    return ", ".join(f"`{name}` {value}" for name, value in settings.items())


def render_changes(results: dict[str, Any]) -> str:
    """One line per change: its settings, its metrics, and what is lost or won by it."""
    head = ["change", "settings", "HR@10", "NDCG@10", "change in NDCG@10", "s"]
    if "recommended_items@10" in results["rows"][0]:
        head.append("different items in all top tens")
    return "\n".join([*table_head(head), *_rows(results)])


def render_tried(results: dict[str, Any]) -> str:
    """One line per idea that was tried and left out: what it reached, and what went without it."""
    head = ["idea", "steps", "HR@10", "NDCG@10", "NDCG@10 without", "change"]
    return "\n".join([*table_head(head), *(_tried(row) for row in results["rows"])])


def _tried(row: dict[str, Any]) -> str:
    found, without = row["with"], row["without"]
    cells = [
        row["idea"],
        f"{found['steps']:,}",
        f"{found['hit_rate@10']:.4f}",
        f"{found['ndcg@10']:.4f}",
        f"{without['ndcg@10']:.4f}",
        f"{found['ndcg@10'] / without['ndcg@10'] - 1:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _rows(results: dict[str, Any]) -> Iterator[str]:
    unchanged = results["rows"][0]
    for row in results["rows"]:
        seconds = [p["train_seconds"] for p in results["points"] if p["change"] == row["change"]]
        by_it = row["ndcg@10"] / unchanged["ndcg@10"] - 1
        cells = [
            row["change"].replace("_", " "),
            describe_settings(results["changes"].get(row["change"], {})),
            _measured(row, "hit_rate@10"),
            _measured(row, "ndcg@10"),
            "" if row is unchanged else f"{by_it:+.1%}",
            f"{sum(seconds) / len(seconds):,.0f}",
        ]
        if "recommended_items@10" in row:
            cells.append(f"{row['recommended_items@10']:,.0f}")
        yield f"| {' | '.join(cells)} |"


def _measured(row: dict[str, Any], metric: str) -> str:
    deviation = row[f"{metric}_deviation"]
    return f"{row[metric]:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")
