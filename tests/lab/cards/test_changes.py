import copy

import pytest

from bert4rec_hf.lab.cards.changes import describe_age, find_changes, find_study_changes
from bert4rec_hf.lab.studies.study import Study, StudyRun

MEASURED = {
    "data": {"dataset": "data/x", "mask_ratio": 0.3},
    "model": {"hidden_size": 64, "is_causal": True},
    "training": {"learning_rate": 0.002, "seed": 1},
    "evaluation": {"ks": [10]},
}


def test_a_setting_left_to_its_default_is_the_default():
    now = copy.deepcopy(MEASURED)
    now["training"] |= {"batch_size": 128, "seed": 5}  # the default, and what may differ
    now["data"]["mask_ratio"] = 0.30
    assert find_changes(MEASURED, now) == {}
    now["training"]["batch_size"] = 64
    assert find_changes(MEASURED, now) == {"training.batch_size": ("128", "64")}


@pytest.mark.parametrize(
    ("section", "setting", "value", "expected"),
    [
        ("data", "mask_ratio", 0.2, ("0.3", "0.2")),
        ("model", "num_hidden_layers", 4, ("not set", "4")),
        ("evaluation", "ks", [5, 10], ("[10]", "[5, 10]")),
        ("training", "item_initialization", "co_occurrence", ("random", "co_occurrence")),
    ],
)
def test_any_setting_that_differs_is_found(section, setting, value, expected):
    now = copy.deepcopy(MEASURED)
    now[section][setting] = value
    assert find_changes(MEASURED, now) == {f"{section}.{setting}": expected}


def test_a_section_that_is_new_is_a_change():
    now = MEASURED | {"adapter": {"tuner": "lora"}}
    assert find_changes(MEASURED, now) == {"adapter.tuner": ("not set", "lora")}


def test_points_are_compared_with_their_own_runs(monkeypatch):
    """The wider run has changed since, the narrower one has not."""
    now = {64: MEASURED, 128: copy.deepcopy(MEASURED)}
    now[128]["model"]["hidden_size"] = 128
    runs = [StudyRun(str(size), {"size": size}, {}) for size in now]
    study = Study("scaling", "x", None, {}, runs)

    class Built:
        def __init__(self, run):
            self.to_dict = lambda: now[run.labels["size"]]

    monkeypatch.setattr(Study, "build", lambda self, run: Built(run))
    points = [{"size": size, "experiment": copy.deepcopy(now[size])} for size in now]
    assert find_study_changes(study, points) == {}
    points[1]["experiment"]["data"]["mask_ratio"] = 0.5
    changes = find_study_changes(study, points)
    assert changes == {"data.mask_ratio": ("0.5", "0.3")}
    (text, _) = describe_age("configs/x.yaml", changes)
    assert "say nothing of `configs/x.yaml` as it is now.** " in text
    assert text.endswith("since they were measured: `data.mask_ratio` 0.5 → 0.3.")
