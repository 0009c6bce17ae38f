"""How a measure goes with size: a power law with a floor or ceiling."""

from typing import NamedTuple

import numpy as np

EXPONENTS = np.geomspace(0.02, 2.0, 60)
"""Tried one by one; given the exponents, all else of a law is a linear least-squares problem."""


class PowerLaws(NamedTuple):
    """Measures as limit + the sum over terms of scale / (x / center)^exponent.

    The form of Hoffmann et al., 2022, https://arxiv.org/abs/2203.15556, equation 2. There is one
    law for each sample of the measures.
    """

    limits: np.ndarray
    """(samples,) what is left at endless size."""

    scales: np.ndarray
    """(samples, terms) below 0 where the measure grows."""

    exponents: np.ndarray
    """(samples, terms)"""

    centers: np.ndarray
    """(terms,) geometric means of the x that the laws were fitted to."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Work out what each law says.

        Args:
            x: (points, terms) sizes.

        Returns:
            (samples, points)
        """
        powers = (x / self.centers) ** -self.exponents[:, None]  # (samples, points, terms)
        return self.limits[:, None] + (powers * self.scales[:, None]).sum(axis=2)


def fit_power_laws(x: np.ndarray, y: np.ndarray) -> PowerLaws:
    """Fit laws of one or two terms by least squares.

    >>> laws = fit_power_laws(np.array([[1.0], [4.0], [16.0]]), np.array([[5.0, 4.0, 3.5]]))
    >>> laws.exponents.round(1), laws.predict(np.array([[64.0]])).round(1)
    (array([[0.5]]), array([[3.2]]))

    Args:
        x: (points, terms) sizes, such as parameters and items seen.
        y: (samples, points) what was measured.

    Raises:
        ValueError: There are fewer different points than a law has numbers.
    """
    num_terms, num_points = x.shape[1], len(np.unique(x, axis=0))
    if num_points < (needed := 1 + 2 * num_terms):
        raise ValueError(
            f"a power law in {num_terms} sizes needs {needed} different points or more, "
            f"got {num_points}"
        )
    centers = np.exp(np.log(x).mean(axis=0))
    grids = np.meshgrid(*[EXPONENTS] * num_terms, indexing="ij")
    tried = np.stack([grid.ravel() for grid in grids], axis=1)  # (tried, terms)
    powers = (x / centers) ** -tried[:, None]  # (tried, points, terms)
    design = np.concatenate([np.ones((*powers.shape[:2], 1)), powers], axis=2)
    solutions = np.linalg.pinv(design) @ y.T  # (tried, 1 + terms, samples)
    errors = ((design @ solutions - y.T) ** 2).sum(axis=1)  # (tried, samples)
    best = errors.argmin(axis=0)
    found = solutions[best, :, np.arange(len(y))]  # (samples, 1 + terms)
    return PowerLaws(found[:, 0], found[:, 1:], tried[best], centers)
