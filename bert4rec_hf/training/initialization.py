"""What weights begin with, where that is better than what is drawn: the model that counting gives.

What co-occurs is most of what there is to learn about rare items, and gradients take tens of epochs
to find it; here it is counted, in the training part, and factorized in seconds. Where attention
begins as the mean of the history, the untrained model is close to an item-kNN.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from bert4rec_hf.evaluation.baselines import similarity_by_co_occurrence
from bert4rec_hf.evaluation.shared_ranking import count_items

MULTIPLICATIONS = 9
OVERSAMPLING = 16
"""Of the randomized factorization: how near it comes to the exact one."""

LARGE_CATALOG, MAX_FACTORS = 100_000, 128
"""Larger catalogs are factorized into so many factors at most, turned into wider vectors, as time
goes with items times factors: at 160,052 items 384 factors take minutes more than 128."""

MAX_COUNTED_ITEMS = 5_000_000
"""Interactions whose neighbors are counted, those of drawn histories where there are more: each
has up to ten neighbors, and a sparse matrix of all pairs would take hundreds of bytes for each."""

CORRECTION = 0.1
"""What is left at the beginning of everything that is not the mean of the history."""


def co_occurrence_vectors(
    histories: Sequence[np.ndarray],
    vocab_size: int,
    size: int,
    *,
    max_distance: int = 5,
    seed: int = 0,
) -> Tensor:
    """Vectors whose products are near the similarity of items by co-occurrence.

    The largest eigenvalues S of the similarity U S U' give U sqrt(|S|), turned at random so that
    all coordinates vary alike (Levy and Goldberg, 2014, for the idea that trained embeddings do
    the same).

    Args:
        histories: Ids, oldest first; of more than MAX_COUNTED_ITEMS only as many are counted.
        vocab_size: Number of ids.
        size: Coordinates of a vector.
        max_distance: Places that two items may stand apart.
        seed: Of the random turn, of the factorization, and of the histories that are counted.

    Returns:
        (vocab, size) float32; zeros for items that stand close to no other.
    """
    counted = draw_histories(histories, MAX_COUNTED_ITEMS, seed)
    similarity = similarity_by_co_occurrence(counted, vocab_size, max_distance)
    factors = count_factors(vocab_size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factored = factorize(similarity.astype(np.float32), factors)
        turn = torch.linalg.qr(torch.randn(size, size))[0]
    is_known = torch.from_numpy(similarity.sum(axis=1) > 0)
    return torch.where(is_known.unsqueeze(1), factored @ turn[:factors], 0)


def co_occurrence_bytes(
    lengths: np.ndarray, vocab_size: int, size: int, *, max_distance: int = 5
) -> int:
    """Bytes that `co_occurrence_vectors` and `set_item_vectors` hold at their height, about.

    Pairs that occur several times are counted as if they never did, so that it is rather too many.

    Args:
        lengths: (histories,) items of each.
        vocab_size: Number of ids.
        size: Coordinates of a vector.
        max_distance: Places that two items may stand apart.
    """
    pairs = sum(np.maximum(lengths - w, 0).sum() for w in range(1, max_distance + 1))
    share = min(1.0, MAX_COUNTED_ITEMS / max(lengths.sum(), 1))  # of the histories
    entries = 2 * pairs * share  # in either order
    basis = 4 * vocab_size * (count_factors(vocab_size, size) + OVERSAMPLING)
    counting = 2 * 12 * entries  # a sum and its parts: a column and a number in double precision
    factorizing = (12 + 8) * entries + 4 * basis  # in single as well; the basis and what makes it
    setting = 5 * 4 * vocab_size * size  # factors, turned, what was drawn, and what replaces it
    return int(max(counting, factorizing, setting))


def count_factors(vocab_size: int, size: int) -> int:
    """Into how many factors a catalog is factorized for vectors of a size."""
    return min(size, vocab_size, MAX_FACTORS if vocab_size > LARGE_CATALOG else size)


def factorize(matrix: sparse.csr_array, factors: int) -> Tensor:
    """Factorize a symmetric matrix by its largest eigenvalues, in absolute value.

    The basis of the largest is found by multiplying a random one again and again (Halko et al.,
    2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.3).

    Args:
        matrix: (items, items) float32.
        factors: How many.

    Returns:
        (items, factors) eigenvectors, each times the root of its eigenvalue's absolute value.
    """
    tried = min(factors + OVERSAMPLING, matrix.shape[0])
    basis = torch.randn(matrix.shape[0], tried)
    for _ in range(MULTIPLICATIONS):
        basis = torch.linalg.qr(torch.from_numpy(matrix @ basis.numpy()))[0]
    values, directions = torch.linalg.eigh(basis.T @ torch.from_numpy(matrix @ basis.numpy()))
    largest = values.abs().argsort(descending=True)[:factors]
    return basis @ (directions[:, largest] * values[largest].abs().sqrt())


def draw_histories(
    histories: Sequence[np.ndarray], max_items: int, seed: int
) -> Sequence[np.ndarray]:
    """Histories with so many items together at most, drawn at random; all if they have no more.

    >>> histories = [np.array([2, 3, 4]), np.array([5, 6]), np.array([7])]
    >>> draw_histories(histories, 6, seed=0) is histories
    True
    >>> sum(map(len, draw_histories(histories, 5, seed=0))) <= 5
    True
    """
    lengths = count_items(histories)
    if lengths.sum() <= max_items:
        return histories
    rows = np.random.default_rng(seed).permutation(len(lengths))
    num_drawn = np.searchsorted(np.cumsum(lengths[rows]), max_items, side="right")
    return [histories[row] for row in np.sort(rows[: max(num_drawn, 1)])]


@torch.no_grad()
def set_item_vectors(model: nn.Module, vectors: Tensor) -> None:
    """Put vectors into the item tables, as large on average as what was drawn there.

    Args:
        model: Its input embeddings, and its output embeddings if they are others, have a row per
            id.
        vectors: (vocab, hidden); rows of zeros keep what was drawn.
    """
    is_known = vectors.any(dim=1)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for table in dict.fromkeys(layer.weight for layer in layers):
        drawn, known = table[is_known], vectors[is_known]
        table[is_known] = (known * (drawn.norm() / known.norm())).to(table)


@torch.no_grad()
def begin_with_average(layers: Sequence[nn.Module]) -> None:
    """Let the first layer hand on what it looks at as it is, and the others next to nothing.

    A mask then reads about the mean of the normalized items around it, as keys and queries are
    small where they are drawn; so the score of an item begins as its mean product with them.

    Args:
        layers: Those of the encoder, each with `self_attn.v_proj`, `self_attn.o_proj` and
            `mlp.down_proj`.
    """
    for layer in layers:
        layer.self_attn.o_proj.weight.mul_(CORRECTION)
        layer.mlp.down_proj.weight.mul_(CORRECTION)
    first = layers[0].self_attn
    nn.init.eye_(first.v_proj.weight)
    nn.init.eye_(first.o_proj.weight)
