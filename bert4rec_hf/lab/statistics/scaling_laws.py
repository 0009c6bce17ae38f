"""What the runs of a study of scale say: laws, what they are worth, and which parameters matter."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .power_law import PowerLaws, fit_power_laws

Point = dict[str, Any]
"""One run: `size`, `max_steps`, `parameters`, `items`, `compute` and `test`."""

MEASURES = ("loss", "ndcg@10")
"""What laws are fitted to, on test."""

LAWS = (("encoder",), ("total",), ("compute",), ("encoder", "items"))
"""What they are laws of: parameters, at the largest budget; and at all budgets the operations of
the training, or parameters together with items read."""

NUM_SAMPLES = 200
"""Times that seeds are drawn anew for intervals."""


class Sizes(NamedTuple):
    """The runs of a measure, those of equal size and budget together."""

    names: list[str]
    """(sizes,)"""

    x: np.ndarray
    """(sizes, terms)"""

    runs: list[np.ndarray]
    """For each size, the measure by seed."""

    def means(self) -> np.ndarray:
        """(1, sizes) over seeds."""
        return np.array([[runs.mean() for runs in self.runs]])

    def drawn_means(self) -> np.ndarray:
        """(samples, sizes) over seeds that are drawn anew, with replacement."""
        generator = np.random.default_rng(0)
        drawn = (generator.choice(runs, (NUM_SAMPLES, len(runs))) for runs in self.runs)
        return np.stack([each.mean(axis=1) for each in drawn], axis=1)

    def without(self, name: str) -> "Sizes":
        """All but one size, at all its budgets."""
        keep = [place for place, each in enumerate(self.names) if each != name]
        return Sizes(
            [self.names[place] for place in keep], self.x[keep], [self.runs[p] for p in keep]
        )


def fit_laws(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Fit every law that there are sizes enough for, without the largest as well.

    A study of one budget has no law of the items read, as all its runs read as many.

    Intervals are of 95 %. They know of the luck of seeds, not of whether the law has the right
    form.

    Returns:
        One dict per measure and law: `measure`, `of`, `num_runs`, the `limit` with its interval,
        per term `scale`, `center`, `exponent` and the exponent's interval; the `deviation` of
        single runs from the law; and the `held_out` largest size, predicted from the others.
    """
    laws = []
    for measure in MEASURES:
        for names in LAWS:
            chosen = choose(points, names)
            sizes = collect_sizes(chosen, measure, names)
            largest = max(chosen, key=lambda point: point["parameters"]["total"])["size"]
            others = sizes.without(largest)
            vary = all(len(np.unique(column)) > 1 for column in others.x.T)
            if vary and len(np.unique(others.x, axis=0)) > 2 * len(names):
                law = {"measure": measure, "of": list(names)} | fit_law(sizes, names)
                laws.append(law | {"held_out": hold_out(sizes, largest)})
    return laws


def choose(points: Sequence[Point], names: Sequence[str]) -> Sequence[Point]:
    """Take what a law is of: parameters alone, the largest budget; with other things, all."""
    if {"compute", "items"} & {*names}:
        return points
    budget = max(point["max_steps"] for point in points)
    return [point for point in points if point["max_steps"] == budget]


def collect_sizes(points: Sequence[Point], measure: str, names: Sequence[str]) -> Sizes:
    """Put runs of equal size and budget together."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point["size"], point["max_steps"]), []).append(point)
    x = [
        [np.mean([abscissa(run, name) for run in runs]) for name in names]
        for runs in groups.values()
    ]
    values = [np.array([run["test"][measure] for run in runs]) for runs in groups.values()]
    return Sizes([size for size, _ in groups], np.array(x), values)


def fit_law(sizes: Sizes, names: Sequence[str]) -> dict[str, Any]:
    """Fit one law, see fit_laws."""
    law = fit_power_laws(sizes.x, sizes.means())
    drawn = fit_power_laws(sizes.x, sizes.drawn_means())
    predicted = law.predict(sizes.x)[0]
    errors = np.concatenate([r - p for r, p in zip(sizes.runs, predicted, strict=True)])
    return {
        "num_runs": len(errors),
        "limit": float(law.limits[0]),
        "limit_interval": interval(drawn.limits),
        "terms": [
            {
                "of": name,
                "scale": float(law.scales[0, place]),
                "center": float(law.centers[place]),
                "exponent": float(law.exponents[0, place]),
                "interval": interval(drawn.exponents[:, place]),
            }
            for place, name in enumerate(names)
        ],
        "deviation": float(np.sqrt(np.mean(errors**2))),
    }


def hold_out(sizes: Sizes, name: str) -> dict[str, Any]:
    """Predict a size, at its largest budget, from the others."""
    others = sizes.without(name)
    place = max(
        (place for place, each in enumerate(sizes.names) if each == name),
        key=lambda place: tuple(sizes.x[place]),
    )
    target = sizes.x[[place]]
    return {
        "size": name,
        "predicted": fit_power_laws(others.x, others.means()).predict(target).item(),
        "interval": interval(fit_power_laws(others.x, others.drawn_means()).predict(target)),
        "seen": float(sizes.runs[place].mean()),
    }


def read_law(law: dict[str, Any]) -> PowerLaws:
    """Take a law of fit_laws for use."""
    scales, exponents, centers = (
        np.array([term[column] for term in law["terms"]])
        for column in ("scale", "exponent", "center")
    )
    return PowerLaws(np.array([law["limit"]]), scales[None], exponents[None], centers)


def tell_parameters_apart(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Find what doubling the encoder, or the item embeddings alone, does at the largest budget.

    A linear fit of the measure to both logarithms; the sizes must vary them apart.

    Returns:
        One dict per measure: `measure`, and `encoder` and `item_embeddings` with the change by
        doubling and its interval; empty where the sizes do not tell them apart.
    """
    parts = ("encoder", "item_embeddings")
    found = []
    for measure in MEASURES:
        sizes = collect_sizes(choose(points, parts), measure, parts)
        if len(sizes.names) < 4:
            return []
        design = np.column_stack([np.ones(len(sizes.x)), np.log2(sizes.x)])
        if np.linalg.matrix_rank(design) < 3:
            return []
        solve = np.linalg.pinv(design)
        slopes, drawn = sizes.means() @ solve.T, sizes.drawn_means() @ solve.T
        changes = {
            part: {"by_doubling": float(slopes[0, column]), "interval": interval(drawn[:, column])}
            for column, part in enumerate(parts, start=1)
        }
        found.append({"measure": measure, **changes})
    return found


def abscissa(point: Point, name: str) -> float:
    """Parameters of a kind, or another number of a run."""
    return point["parameters"].get(name) or point[name]


def interval(samples: np.ndarray) -> list[float]:
    """Lower and upper end of what 95 % of the samples lie in."""
    return np.quantile(samples, [0.025, 0.975]).tolist()
