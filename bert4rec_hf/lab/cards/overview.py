"""The one table of results that the README shows: a line per dataset, the protocol in it."""

from typing import Any

from bert4rec_hf.hub.card import headline

from .comparison_card import mean_over_seeds, spread, table_head

METRICS = ("hit_rate@10", "ndcg@10")
HEADING = ["model", "dataset", "seen items", "trained on", "seeds", "HR@10", "NDCG@10"]
HEADING += ["item-kNN", "best published"]


def render_overview(recipes: dict[str, dict[str, Any]], runs: dict[str, dict[str, Any]]) -> str:
    """Put the recipe's model of each dataset beside item-kNN and the best published.

    Where a comparison has several seeds of a run, its means are shown instead of the run.

    Args:
        recipes: Comparisons of recipes, by name.
        runs: Contents of results files of single runs, by name.
    """
    several = {results["against"]: name for name, results in recipes.items()}
    lines = table_head(HEADING)
    for name, run in runs.items():
        # Twins are compared in cards of their own, and generated data with what is possible there.
        if name.endswith("-causal") or run["dataset"]["source"] == "synthetic":
            continue
        comparison = recipes[several[name]] if name in several else None
        seeds = comparison["runs"][name] if comparison else [{"metrics": run["test"]["metrics"]}]
        lines.append(_line(name, several.get(name, name), seeds, run))
    return "\n".join(lines)


def _line(name: str, card: str, seeds: list[dict[str, Any]], run: dict[str, Any]) -> str:
    knn = run["baselines"]["item_knn"]["metrics"]
    published = run["experiment"]["card"]["published"]
    best = max(published, key=lambda other: other["ndcg@10"], default=None)
    is_below = mean_over_seeds(seeds, "ndcg@10") < knn["ndcg@10"]
    cells = [
        f"[{name}](model_cards/{card}.md)" + (" (**below item-kNN**)" if is_below else ""),
        run["experiment"]["card"]["dataset_name"],
        "left out" if run["test"]["protocol"]["exclude_seen"] else "ranked",
        "`[:-1]`" if run["dataset"]["settings"]["validation_users"] else "`[:-2]`",
        str(len(seeds)),
        *(spread(seeds, metric) for metric in METRICS),
        headline(knn),
        f"{headline(best)}, {best['model']}" if best else "–",
    ]
    return f"| {' | '.join(cells)} |"
