"""Vectors of items that a trained model has not met, made of those that it knows."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from bert4rec_hf.evaluation.baselines import similarity_by_co_occurrence

NEAREST = 10
"""Known items that a new one is made of, where vectors say which are near."""


def shares_by_co_occurrence(
    histories: Sequence[np.ndarray], vocab_size: int, num_known: int, *, max_distance: int = 5
) -> sparse.csr_array:
    """What of each known item goes into each new one, by how much they stand together.

    Args:
        histories: Ids, oldest first, new items among them.
        vocab_size: Number of ids.
        num_known: Of them, those that the model knows; they come first.
        max_distance: Places that two items may stand apart.

    Returns:
        (new, known) rows that sum to 1, or to 0 where a new item stands with no known one.
    """
    similarity = similarity_by_co_occurrence(histories, vocab_size, max_distance)
    return normalize_rows(similarity[num_known:, :num_known])


def shares_by_vectors(vectors: Tensor, num_known: int) -> sparse.csr_array:
    """What of each known item goes into each new one, by given vectors, such as of their texts.

    Args:
        vectors: (vocab, dimensions) zeros where an item has none.
        num_known: Ids that the model knows; they come first.

    Returns:
        (new, known) rows that sum to 1, or to 0 where a new item has no vector.
    """
    unit = nn.functional.normalize(vectors.float(), dim=1)
    cosines = unit[num_known:] @ unit[:num_known].T
    nearest = cosines.topk(min(NEAREST, num_known))
    columns, values = nearest.indices.numpy(), nearest.values.clamp(min=0).numpy()
    starts = np.arange(0, columns.size + 1, columns.shape[1])
    shape = (len(columns), num_known)
    return normalize_rows(sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=shape))


def normalize_rows(weights: sparse.csr_array) -> sparse.csr_array:
    """Let each row that is not empty sum to 1."""
    sums = weights.sum(axis=1)
    return sparse.csr_array(sparse.diags_array(1 / np.where(sums > 0, sums, 1)) @ weights)


@torch.no_grad()
def add_items(model: nn.Module, shares: sparse.csr_array) -> None:
    """Let a model's catalog grow; what it says of the items that it knows stays the same.

    The vector of a new item has the direction of its share-weighted mean of known ones and their
    mean length; without shares it is the mean of all.

    Args:
        model: A masked-item model.
        shares: (new, known) as one of the functions above makes them; known counts all ids,
            padding and mask included.
    """
    num_new, num_known = shares.shape
    model.resize_token_embeddings(num_known + num_new, mean_resizing=False)
    layers = {model.get_input_embeddings(), model.get_output_embeddings()}
    for table in {layer.weight for layer in layers}:
        table[num_known:] = _mix(table[:num_known], shares)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        known = bias[:num_known].double().numpy(force=True)
        mixed = np.where(shares.sum(axis=1) > 0, shares @ known, known[_items(num_known)].mean())
        bias[num_known:] = torch.as_tensor(mixed).to(bias)


def _items(num_known: int) -> slice:
    return slice(2, num_known)


def _mix(known: Tensor, shares: sparse.csr_array) -> Tensor:
    """(new, hidden) vectors of new items from the (known, hidden) ones."""
    table = known.double().numpy(force=True)
    lengths = np.linalg.norm(table, axis=1)
    directions, sizes = shares @ table, shares @ lengths
    is_alone = sizes == 0
    directions[is_alone] = table[_items(len(table))].mean(axis=0)
    sizes[is_alone] = np.linalg.norm(directions[is_alone], axis=1)
    found = np.linalg.norm(directions, axis=1)
    scale = sizes / np.where(found > 0, found, 1)
    return torch.as_tensor(directions * scale[:, np.newaxis]).to(known)
