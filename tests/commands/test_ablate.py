import subprocess
import sys
from pathlib import Path

import yaml

SCRIPT = Path(__file__).parents[2] / "scripts" / "ablate.py"


def ablate(root, tmp_path, *arguments):
    path = tmp_path / "ablation.yaml"
    sections = {
        "study": {"experiment": str(root / "base.yaml"), "seeds": [0]},
        "changes": {"causal": {"model.is_causal": True}},
        "training": {"max_steps": 2, "evaluation_steps": 2, "trackers": []},
    }
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    command = [sys.executable, SCRIPT, path, "--output", tmp_path / "study", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_table_of_changes_is_told(root, tmp_path):
    done = ablate(root, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| causal | `model.is_causal` True |" in done.stdout
    assert f"results: {tmp_path / 'study' / 'ablation.json'}" in done.stdout


def test_a_mistake_ends_it_in_one_line(root, tmp_path):
    done = ablate(root, tmp_path, "--model.hiden_size", "8")
    assert done.returncode == 2
    assert "did you mean hidden_size" in done.stderr
    assert "Traceback" not in done.stderr
