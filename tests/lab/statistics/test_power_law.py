import numpy as np
import pytest
from scipy.optimize import curve_fit

from bert4rec_hf.lab.statistics.power_law import fit_power_laws


def test_one_term_is_found_as_another_library_finds_it():
    generator = np.random.default_rng(0)
    x = np.geomspace(3, 3_000, 11)
    y = 2 + 5 * x**-0.4 + generator.normal(0, 0.01, size=11)
    law = fit_power_laws(x[:, None], y[None])
    expected, _ = curve_fit(lambda x, e, a, b: e + a * x**-b, x, y, p0=(1, 4, 0.5))
    # The exponents that are tried are 8 % apart.
    assert law.exponents[0] == pytest.approx(expected[2:], rel=0.08)
    assert law.limits[0] == pytest.approx(expected[0], rel=0.05)
    inside = np.array([5.0, 500.0, 2_000.0])
    values = expected[0] + expected[1] * inside ** -expected[2]
    assert law.predict(inside[:, None])[0] == pytest.approx(values, abs=0.01)


def test_two_terms_that_grow_to_a_ceiling_are_told_apart():
    sizes, items = np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e6, 3))
    x = np.stack([sizes.ravel(), items.ravel()], axis=1)
    y = 0.5 - 3 * x[:, 0] ** -0.3 - 20 * x[:, 1] ** -0.5
    law = fit_power_laws(x, y[None])
    assert law.limits[0] == pytest.approx(0.5, abs=0.01)
    assert law.exponents[0] == pytest.approx([0.3, 0.5], rel=0.08)
    assert (law.scales < 0).all()
    assert law.predict(x)[0] == pytest.approx(y, abs=1e-3)


def test_a_law_of_more_numbers_than_sizes_is_refused():
    x = np.array([[1.0], [1.0], [2.0]])
    with pytest.raises(ValueError, match="in 1 sizes needs 3 different points or more, got 2"):
        fit_power_laws(x, np.array([[3.0, 3.1, 2.0]]))
