"""Test with the oldest and the newest supported libraries, and let each load the other's files.

python -m tests.versions.matrix --folder /var/tmp/versions --output versions.json

The oldest are the floors of setup.cfg, the newest what pip finds within its bounds. Each has a
virtual environment under --folder, which is kept, so that a second run installs nothing. With
`--only oldest`, one of them is tested and its part of the results is replaced.
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bert4rec_hf.evaluation.provenance import current_commit

ROOT = Path(__file__).parents[2]
TESTS = ["tests/modeling", "tests/tuners", "tests/evaluation", "tests/data", "tests/hub"]
TESTS += ["tests/training", "tests/golden"]
FOR_TESTS = ["pytest", "hypothesis", "torchmetrics"]
"""Of the extra `test`, what these tests import."""


def requirements(name: str) -> list[str]:
    """What pip installs: the floors themselves for `oldest`, what setup.cfg says for `newest`."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    lines += [
        line
        for line in parser["options.extras_require"]["test"].split("\n")
        if line.split(" ")[0] in FOR_TESTS
    ]
    lines = [line.replace(" ", "") for line in lines if line]
    if name == "newest":
        return lines
    return [re.sub(r"^([\w-]+)>=([\d.]+).*", r"\1==\2", line) for line in lines]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a command of an environment, with this checkout and on one core."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [folder / "bin" / command[0], *command[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def install(folder: Path, name: str) -> None:
    """Make an environment, or find it as it was made before."""
    listed = folder / "requirements.txt"
    wanted = "\n".join(requirements(name)) + "\n"
    if listed.exists() and listed.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    listed.write_text(wanted)
    done = run(folder, "pip", "install", "--quiet", "--requirement", str(listed))
    if done.returncode:
        listed.unlink()
        sys.exit(f"{name} cannot be installed:\n{done.stderr[-3000:]}")


def measure(folder: Path, name: str, tests: list[str]) -> dict[str, Any]:
    """Install, test, and write a golden folder beside the environment."""
    install(folder / name, name)
    done = run(folder / name, "pip", "freeze")
    names = {re.split("[><=]", line)[0].lower() for line in requirements(name)}
    pinned = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    versions = {key.lower(): value for key, value in pinned.items() if key.lower() in names}
    done = run(folder / name, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.M)
    golden = folder / f"{name}-golden"
    shutil.rmtree(golden, ignore_errors=True)
    made = run(folder / name, "python", "-m", "tests.golden.make", str(golden))
    return {
        "versions": dict(sorted(versions.items())),
        "tests": {**counts, "which": tests, "failures": failed},
        "writes": made.returncode == 0 or made.stderr[-500:],
    }


def cross(folder: Path, reader: str, writer: str) -> bool | str:
    """Whether one environment loads what another wrote, with equal scores; or what went wrong."""
    done = run(
        folder / reader, "python", "-m", "tests.golden.check", str(folder / f"{writer}-golden")
    )
    return done.returncode == 0 or done.stderr[-500:]


def describe_trials(results: dict[str, Any]) -> list[dict[str, Any]]:
    """List what was tried and what came of it, as the reliability table takes it."""
    tests = [
        {
            "area": "versions",
            "tried": f"tests with the {name} libraries",
            "outcome": word,
            "times": n,
        }
        for name, environment in results["environments"].items()
        for word, n in environment["tests"].items()
        if isinstance(n, int)
    ]
    loads = [
        {
            "area": "versions",
            "tried": f"{name}: dataset, model, adapter and checkpoint",
            "outcome": "equal scores" if outcome is True else "failed",
            "times": 1,
        }
        for name, outcome in results["loads"].items()
    ]
    return tests + loads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the environments")
    parser.add_argument("--output", type=Path, required=True, help="JSON, added to if it exists")
    parser.add_argument("--only", choices=["oldest", "newest"])
    parser.add_argument("--tests", nargs="+", default=TESTS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results |= {"commit": current_commit(), "python": sys.version.split()[0]}
    environments = results.setdefault("environments", {})
    for name in [options.only] if options.only else ["oldest", "newest"]:
        environments[name] = measure(folder, name, options.tests)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results["loads"] = {
        f"{reader} reads {writer}": cross(folder, reader, writer)
        for reader in environments
        for writer in environments
    }
    results |= {"kind": "reliability", "trials": describe_trials(results)}
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
