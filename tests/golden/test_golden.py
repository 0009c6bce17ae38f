"""What older releases wrote loads for ever, with the scores it had."""

import json
from pathlib import Path

import pytest

from tests.golden.check import check, check_scores

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))


def test_there_is_at_least_the_first_release():
    assert "0.1.0" in [path.name for path in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_golden_folder_loads_and_its_run_goes_on(folder, monkeypatch):
    monkeypatch.chdir(folder)  # and back, whatever is done in between
    check(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_other_scores_would_be_noticed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    item = next(iter(expected["model"][0]))
    expected["model"][0][item] += 0.01
    with pytest.raises(AssertionError):
        check_scores(folder, "run/model", expected["model"])
