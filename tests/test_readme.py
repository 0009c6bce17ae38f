import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert4rec_hf.data.synthetic import SyntheticConfig, generate_interactions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(mark):
    """The shell block behind a mark."""
    return re.search(rf"<!-- {mark} -->\n```sh\n(.*?)```", README, flags=re.DOTALL)[1]


def test_ci_runs_the_test_command_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    script = re.search(r"command=\$\((awk .*)\)", ci)[1]
    found = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == command("test")
    assert "pip install" in found.stdout
    assert found.stdout.rstrip().endswith("pytest")


def test_the_files_that_the_readme_names_exist():
    named = set(re.findall(r"(?:scripts|configs|bert4rec_hf)/[\w/]+\.(?:py|yaml)", README))
    assert "scripts/train.py" in named
    assert "configs/synthetic/bert4rec.yaml" in named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def command_lines():
    """Every call of a command in the shell blocks of the Markdown files, as words."""
    files = [ROOT / "README.md", *(ROOT / "scripts").glob("*.md"), *(ROOT / "configs").glob("*.md")]
    for path in files:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
                words = line.partition(" #")[0].split()
                if words[:1] == ["bert4rec"]:
                    yield words[1], words[2:]
                elif script := [n for n, word in enumerate(words) if word.startswith("scripts/")]:
                    yield Path(words[script[0]]).stem, words[script[0] + 1 :]


LINES = list(command_lines())


def test_the_lines_are_found():
    assert {"prepare", "recipe", "train", "evaluate", "recommend"} <= {name for name, _ in LINES}


@pytest.mark.parametrize("name", sorted({name for name, _ in LINES}))
def test_commands_know_the_options_that_the_readmes_give_them(name, capsys):
    module = importlib.import_module(f"bert4rec_hf.commands.{name}")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    known = capsys.readouterr().out
    for each, words in LINES:
        for word in words:
            option = word.partition("=")[0]
            if each == name and option.startswith("-") and "." not in option:
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{name} has no {option}"


@pytest.mark.slow
def test_what_the_readme_says_works_as_it_stands(tmp_path):
    for folder in ("configs", "scripts", "bert4rec_hf"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    install, lines = command("run").split("pip install -e . &&\n")
    assert "venv" in install
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    settings = {"cwd": tmp_path, "env": environment, "check": True, "text": True}
    done = subprocess.run(["sh", "-eu", "-c", lines], capture_output=True, **settings)
    assert "verdict: beats item-kNN by" in done.stdout
    assert "next: bert4rec recommend runs/synthetic/model" in done.stdout
    assert "warn" not in done.stderr.lower()
    results = json.loads((tmp_path / "runs/synthetic/results.json").read_text())
    for name in ("popularity", "last_item", "item_knn"):
        for metric in ("hit_rate@10", "ndcg@10"):
            baseline = results["baselines"][name]["metrics"][metric]
            assert results["test"]["metrics"][metric] > baseline, (name, metric)

    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    subprocess.run([sys.executable, "-c", "".join(blocks)], **settings)

    generated = generate_interactions(SyntheticConfig(num_users=300, num_items=60, max_length=30))
    names = {"user": "customer", "item": "sku", "timestamp": "bought_at"}
    generated.interactions.rename(names).write_csv(tmp_path / "purchases.csv")
    subprocess.run(["sh", "-eu", "-c", command("own")], **settings)
    assert (tmp_path / "runs/purchases/model/README.md").exists()
