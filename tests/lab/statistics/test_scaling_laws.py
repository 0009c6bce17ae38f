import numpy as np
import pytest

from bert4rec_hf.lab.statistics.scaling_laws import (
    collect_sizes,
    fit_laws,
    interval,
    tell_parameters_apart,
)

SIZES = {"a": (1e4, 1e5), "b": (1e5, 1e5), "c": (1e5, 2e5), "d": (4e5, 2e5), "e": (4e6, 4e5)}


def make_points(loss, budgets=(100, 400)):
    """Runs whose loss is a function of encoder, embeddings and items, seeds 0.01 apart."""
    return [
        {
            "size": size,
            "max_steps": steps,
            "parameters": {
                "encoder": encoder,
                "item_embeddings": embeddings,
                "total": encoder + embeddings,
            },
            "items": 50 * steps,
            "compute": 6 * 50 * steps * encoder,
            "test": {
                "loss": (value := loss(encoder, embeddings, 50 * steps) + 0.01 * seed),
                "ndcg@10": 1 / value,
            },
        }
        for steps in budgets
        for size, (encoder, embeddings) in SIZES.items()
        for seed in (-1, 1)
    ]


def test_a_law_of_the_encoder_is_found_and_predicts_the_size_it_has_not_seen():
    points = make_points(lambda encoder, embeddings, items: 4 + 30 * encoder**-0.3)
    laws = {(law["measure"], *law["of"]): law for law in fit_laws(points)}
    law = laws["loss", "encoder"]
    assert law["num_runs"] == 10  # the largest budget alone
    assert law["terms"][0]["exponent"] == pytest.approx(0.3, rel=0.1)
    low, high = law["terms"][0]["interval"]
    assert low <= law["terms"][0]["exponent"] <= high
    assert law["limit"] == pytest.approx(4, abs=0.05)
    assert law["deviation"] == pytest.approx(0.01, abs=0.003)
    assert law["held_out"]["size"] == "e"
    assert law["held_out"]["seen"] == pytest.approx(4 + 30 * 4e6**-0.3)
    assert law["held_out"]["predicted"] == pytest.approx(law["held_out"]["seen"], abs=0.05)
    assert laws["loss", "encoder", "items"]["num_runs"] == 20
    assert {"loss", "ndcg@10"} == {measure for measure, *_ in laws}


def test_one_budget_has_no_law_of_the_items_read():
    points = make_points(lambda encoder, embeddings, items: 4 + 30 * encoder**-0.3, budgets=(400,))
    assert {tuple(law["of"]) for law in fit_laws(points)} == {
        ("encoder",),
        ("total",),
        ("compute",),
    }


def test_what_doubling_either_part_does_is_told_apart():
    points = make_points(
        lambda encoder, embeddings, items: 9 - 0.25 * np.log2(encoder) - 0.125 * np.log2(embeddings)
    )
    found = {each["measure"]: each for each in tell_parameters_apart(points)}["loss"]
    assert found["encoder"]["by_doubling"] == pytest.approx(-0.25)
    assert found["item_embeddings"]["by_doubling"] == pytest.approx(-0.125)
    low, high = found["encoder"]["interval"]
    assert low < -0.25 < high


def test_where_sizes_are_too_few_nothing_is_claimed():
    points = [point for point in make_points(lambda *_: 1.0) if point["size"] in "ab"]
    assert fit_laws(points) == []
    assert tell_parameters_apart(points) == []


def test_a_study_that_is_not_done_has_laws_of_what_there_is():
    points = make_points(lambda encoder, embeddings, items: 4 + 30 * encoder**-0.3)
    points = [point for point in points if (point["size"], point["max_steps"]) != ("e", 400)]
    laws = {(law["measure"], *law["of"]): law for law in fit_laws(points)}
    assert laws["loss", "total"]["held_out"]["size"] == "d"
    assert laws["loss", "compute"]["held_out"]["size"] == "e"


def test_intervals_tell_of_the_luck_of_seeds_alone():
    points = make_points(lambda encoder, *_: 8.0 if encoder > 1e6 else 4.0)
    for point in points:
        if point["size"] == "a":
            point["test"]["loss"] = 3.0
    longest = [point for point in points if point["max_steps"] == 400]
    sizes = collect_sizes(longest, "loss", ("encoder",))
    drawn = sizes.drawn_means()
    assert drawn.shape[1] == len(sizes.names) == 5
    assert interval(drawn[:, sizes.names.index("a")]) == [3.0, 3.0]
    # Two seeds are drawn as two times the one, or two times the other, a quarter of the times each.
    assert interval(drawn[:, sizes.names.index("e")]) == pytest.approx([7.99, 8.01])
