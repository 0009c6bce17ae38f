"""Hit rate, NDCG and MRR as a module of the `evaluate` library, loadable from its path.

Use:
    metric = evaluate.load("bert4rec_hf/evaluation/ranking_metric.py")
    metric.compute(predictions=[["dune", "alien"]], references=["alien"], k=[1, 2])
"""

from typing import Any

# One plain import per line: the import scanner of `evaluate` understands nothing else.
import datasets
import evaluate
import torch

from bert4rec_hf.evaluation.metrics import compute_metrics

_DESCRIPTION = """Quality of ranked lists of recommendations with one held-out item each: hit rate,
NDCG and MRR among the first k, averaged over all lists."""

_INPUTS = """
Args:
    predictions: One list of recommended items per history, best first, each item once; raw items
        or ids. At least as long as the largest k.
    references: The held-out item of each history.
    k: How many of the first places count; one number or several.
Returns:
    `hit_rate@k`, `ndcg@k` and `mrr@k`, for every k.
"""


def _as_texts(items: Any) -> Any:
    """Write items as texts, in lists as deep as they come; arrays and tensors become lists."""
    items = items.tolist() if hasattr(items, "tolist") else items
    return [_as_texts(item) for item in items] if isinstance(items, list | tuple) else str(items)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RankingMetric(evaluate.Metric):
    """Metrics of ranked lists."""

    def _info(self) -> evaluate.MetricInfo:
        # Texts alone: with integers as a choice, datasets reads "0108" and "108" as the same item.
        features = datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("string")),
                "references": datasets.Value("string"),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Add one history."""
        super().add(prediction=_as_texts(prediction), reference=_as_texts(reference), **others)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **others: Any) -> None:
        """Add histories."""
        predictions, references = _as_texts(predictions), _as_texts(references)
        super().add_batch(predictions=predictions, references=references, **others)

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        k: int | list[int],
    ) -> dict[str, float]:
        ks = [k] if isinstance(k, int) else list(k)
        for row, items in enumerate(predictions):
            if len(items) < max(ks):
                raise ValueError(
                    f"prediction {row} has {len(items)} items, too few for k = {max(ks)}; "
                    "recommend more items or lower k"
                )
        beyond = max(ks) + 1
        ranks = [
            items.index(target) + 1 if target in items else beyond
            for items, target in zip(predictions, references, strict=True)
        ]
        return compute_metrics(torch.tensor(ranks), ks)
