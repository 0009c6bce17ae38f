import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert4rec_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEAVES = {"config", "data", "evaluation", "modeling", "recipe", "strict_yaml", "tuners"}
LIBRARY = LEAVES | {"training", "hub", "serving", "experiment"}
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, set()),
    "config": {"strict_yaml"},  # reading a file safely is one thing, what stands in it another
    "training": {"config", "evaluation"},
    "hub": {"config", "data", "modeling", "training", "tuners"},
    "serving": {"data", "evaluation", "hub", "modeling", "tuners"},
    "experiment": LEAVES | {"training", "hub"},
    "lab": LIBRARY,
    "commands": LIBRARY | {"lab"},
    "__init__": {"data", "experiment", "modeling", "serving", "tuners"},
}


def owner(path):
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Absolute names of the modules a file imports, and the dots of its relative imports."""
    names, dots = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            (dots if node.level else names).add(
                (node.level, node.module) if node.level else node.module
            )
    return names, dots


def test_the_walk_finds_the_package():
    assert PACKAGE / "modeling" / "modeling_bert4rec.py" in MODULES
    assert {owner(path) for path in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path):
    names, dots = imports(path)
    ours = {name.split(".")[1] for name in names if name.startswith("bert4rec_hf.")}
    assert "bert4rec_hf" not in names
    assert ours - {owner(path)} <= MAY_IMPORT[owner(path)]
    assert all(level == 1 for level, _ in dots), "relative imports reach siblings only"


@pytest.mark.parametrize("path", sorted((PACKAGE / "modeling").glob("*.py")), ids=lambda p: p.name)
def test_the_island_needs_nothing_but_transformers(path):
    names, dots = imports(path)
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    brought_by_transformers, only_if_there = {"tokenizers"}, {"peft"}
    allowed |= brought_by_transformers | only_if_there
    assert {name.split(".")[0] for name in names} <= allowed
    siblings = {path.stem for path in (PACKAGE / "modeling").glob("*.py")}
    assert {module for _, module in dots} <= siblings


def test_training_does_not_import_what_only_preparation_needs():
    code = (
        "import sys, bert4rec_hf.experiment.run\n"
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    unneeded = ["polars", "evaluate", "optuna"]
    done = subprocess.run(
        [sys.executable, "-c", code, *unneeded, "torch"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("['torch']")
