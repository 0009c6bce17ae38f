"""The card of a study of scale: every figure in it is taken from its results file."""

import statistics
from collections.abc import Sequence
from typing import Any

from .changes import describe_age
from .comparison_card import table_head

LABELS = {
    "loss": "cross-entropy, nats",
    "ndcg@10": "NDCG@10",
    "encoder": "encoder parameters",
    "item_embeddings": "item embeddings",
    "total": "all parameters",
    "compute": "training operations",
    "items": "items read",
}
"""What measures and abscissae are called."""


def render_scaling_card(name: str, results: dict[str, Any]) -> str:
    """Tell in Markdown what was trained, the results, and the laws they follow.

    Args:
        name: Of the results file, without its ending, and of the plot.
        results: As `run_scaling` returns them; and under `changed_since` what has changed in its
            experiment since.
    """
    points = results["points"]
    config = results["study"]
    lines = [
        f"# {name}",
        "",
        f"`{config['experiment']}` at {len(results['sizes'])} sizes, with budgets of "
        f"{' and '.join(f'{steps:,}' for steps in sorted(config['max_steps']))} steps and "
        f"{len(config['seeds'])} seeds each. Measured on test, full ranking, the best step chosen "
        "on validation; mean ± standard deviation over seeds. Cross-entropy is that of the "
        "next item against the whole catalog.",
        "",
        *describe_age(config["experiment"], results.get("changed_since", {})),
        render_sizes(points),
        "",
        f"![loss and NDCG@10 by parameters and training operations]({name}.png)",
        "",
        "## Laws",
        "",
        "measure = limit + Σ scale / (x / center)^exponent, fitted by least squares; in brackets "
        "the 95 % interval over seeds, which does not know whether the law has the right form. "
        "Exponents from 0.02 to 2 were tried: at 0.02 the measure goes like a logarithm, and its "
        "limit cannot be told. The last column says how far a law can be trusted: the largest "
        "size, predicted from the others.",
        "",
        *render_laws(results["laws"]),
        "",
        *render_parts(results["by_doubling"]),
        describe_origin(points),
        "",
    ]
    return "\n".join(lines)


def describe_origin(points: Sequence[dict[str, Any]]) -> str:
    """What all points of a study were measured on, and with."""
    first = points[0]
    commits = ", ".join(sorted({f"`{point['commit']}`" for point in points}))
    versions = ", ".join(f"{library} {number}" for library, number in first["versions"].items())
    return (
        f"Dataset `{first['dataset_fingerprint']}`, trained at {commits}, "
        f"{first['device']['name']}; {versions}."
    )


def render_sizes(points: Sequence[dict[str, Any]]) -> str:
    """A table of all sizes and budgets."""
    rows = {}
    for point in points:
        rows.setdefault((point["max_steps"], point["size"]), []).append(point)
    head = ["steps", "size", "encoder", "item embeddings", "operations", "cross-entropy"]
    return "\n".join(
        [
            *table_head([*head, "HR@10", "NDCG@10"]),
            *(
                f"| {max_steps:,} | {size} | {runs[0]['parameters']['encoder']:,} | "
                f"{runs[0]['parameters']['item_embeddings']:,} | {mean_of(runs, 'compute'):.2g} | "
                f"{spread(runs, 'loss', 3)} | {spread(runs, 'hit_rate@10')} | "
                f"{spread(runs, 'ndcg@10')} |"
                for (max_steps, size), runs in rows.items()
            ),
        ]
    )


def render_laws(laws: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the laws."""
    head = ["measure", "by", "exponent", "limit", "single runs deviate by", "largest size"]
    return [
        *table_head(head),
        *(
            f"| {LABELS[law['measure']]} | {', '.join(LABELS[name] for name in law['of'])} | "
            f"{', '.join(_with_interval(t['exponent'], t['interval'], 2) for t in law['terms'])} | "
            f"{_with_interval(law['limit'], law['limit_interval'], 4)} | {law['deviation']:.2g} | "
            f"{describe_held_out(law['held_out'])} |"
            for law in laws
        ),
    ]


def describe_held_out(held_out: dict[str, Any]) -> str:
    """What the other sizes say of the largest, and what was seen."""
    guess = _with_interval(held_out["predicted"], held_out["interval"], 4)
    return f"{held_out['size']}: {guess} predicted, {held_out['seen']:.4f} seen"


def render_parts(by_doubling: Sequence[dict[str, Any]], level: int = 2) -> list[str]:
    """What doubling either part of the parameters alone does, under a heading of that level."""
    if not by_doubling:
        return []
    parts = ("encoder", "item_embeddings")
    return [
        f"{'#' * level} Encoder or embeddings",
        "",
        "Change by doubling one kind of parameters alone, by a linear fit to both logarithms at "
        "the largest budget:",
        "",
        *table_head(["measure", *(LABELS[part] for part in parts)]),
        *(
            f"| {LABELS[found['measure']]} | "
            + " | ".join(
                _with_interval(found[part]["by_doubling"], found[part]["interval"], 4, sign="+")
                for part in parts
            )
            + " |"
            for found in by_doubling
        ),
        "",
    ]


def mean_of(runs: Sequence[dict[str, Any]], name: str) -> float:
    """Mean over seeds."""
    return statistics.mean(run[name] for run in runs)


def spread(runs: Sequence[dict[str, Any]], measure: str, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds, on test."""
    values = [run["test"][measure] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def _with_interval(value: float, interval: Sequence[float], digits: int, sign: str = "") -> str:
    low, high = (f"{end:{sign}.{digits}f}" for end in interval)
    return f"{value:{sign}.{digits}f} [{low}, {high}]"
