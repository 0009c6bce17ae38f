import re
import subprocess
import sys
from pathlib import Path

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


def test_the_scripts_of_the_readme_know_its_options():
    options = {"prepare_data": ["--user-column", "--min-interactions", "--validation-users"]}
    options |= {"train": ["--resume", "--output"], "evaluate": ["--dataset"], "recommend": ["-k"]}
    for script, names in options.items():
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        for name in names:
            assert name in done.stdout, script
