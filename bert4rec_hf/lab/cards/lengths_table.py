"""What reading more of a history is worth: every figure is taken from a results file."""

from typing import Any

from .comparison_card import table_head


def render_lengths(results: dict[str, Any]) -> str:
    """A table for a terminal and for Markdown alike."""
    paces = [each["histories_per_second"] for each in results["lengths"].values()]
    lines = table_head(["items read", "HR@10", "NDCG@10", "histories/s", "cost"])
    for name, each in results["lengths"].items():
        is_trained = int(name) == results["trained_length"]
        cells = [
            f"{name}, as in training" if is_trained else name,
            *(f"{each['metrics'][metric]:.4f}" for metric in ("hit_rate@10", "ndcg@10")),
            f"{each['histories_per_second']:,.0f}",
            f"{max(paces) / each['histories_per_second']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
