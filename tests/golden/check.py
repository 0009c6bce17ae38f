"""Load a golden folder, of this release or an older one, and compare with what stands beside it.

python -m tests.golden.check tests/golden/0.1.0
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bert4rec_hf.data.prepared import load_prepared
from tests.golden.make import measure, score, train


def check_scores(folder: Path, name: str, expected: list[dict[str, float]]) -> None:
    """Every item of every history has the score that it had; `folder` is the working directory."""
    os.chdir(folder)
    found = score(Path(name))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def check(folder: Path) -> None:
    """Check dataset, model, adapter and checkpoint of a copy of the folder."""
    with tempfile.TemporaryDirectory() as workplace:
        copy = shutil.copytree(folder, Path(workplace) / "golden")
        expected = json.loads((copy / "expected.json").read_text(encoding="utf-8"))
        load_prepared(copy / "dataset", verify=True)
        check_scores(copy, "run/model", expected["model"])
        check_scores(copy, "adapter", expected["adapter"])
        found = measure(train(Path("experiment.yaml"), Path("run"), is_resumed=True))
        assert found["step"] == expected["resumed"]["step"]
        assert found["best_metric"] == pytest.approx(expected["resumed"]["best_metric"], abs=1e-3)
        assert found["metrics"] == pytest.approx(expected["resumed"]["metrics"], abs=1e-3)
        os.chdir("/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    for each in parser.parse_args().folders:
        check(each.resolve())
