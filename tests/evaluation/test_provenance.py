import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from bert4rec_hf.evaluation import provenance as module
from bert4rec_hf.evaluation.provenance import current_commit, package_version, provenance


def test_commit_device_and_versions_are_told():
    origin = provenance(Accelerator(cpu=True))
    assert origin["device"]["type"] == "cpu"
    assert origin["device"]["name"]
    assert (origin["num_processes"], origin["mixed_precision"]) == (1, "no")
    assert origin["dynamo_backend"] == "no"
    assert origin["versions"]["python"] == platform.python_version()
    assert origin["versions"]["torch"] == version("torch")
    setup = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert f"\nversion = {origin['versions']['bert4rec_hf']}\n" in setup


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_changed_checkout_is_dirty_and_no_checkout_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package.py"))
    assert current_commit() == "unknown"
    (tmp_path / "package.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package.py")
    git(tmp_path, "commit", "-qm", "one")
    assert current_commit() == git(tmp_path, "rev-parse", "HEAD")[:12]
    (tmp_path / "package.py").write_text("two")
    assert current_commit() == git(tmp_path, "rev-parse", "HEAD")[:12] + "-dirty"


def install(folder, number):
    """Lay the module down in a virtual environment, as an installer does."""
    site = folder / ".venv" / "lib" / "site-packages"
    package = site / "bert4rec_hf" / "evaluation"
    package.mkdir(parents=True)
    (package / "provenance.py").write_bytes(Path(module.__file__).read_bytes())
    described = site / f"bert4rec_hf-{number}.dist-info"
    described.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: bert4rec_hf\nVersion: {number}\n"
    (described / "METADATA").write_text(metadata)
    return site


def test_an_installed_package_names_its_version_and_not_the_commit_around_it(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = another\nversion = 7.7\n")
    git(tmp_path, "add", "setup.cfg")
    git(tmp_path, "commit", "-qm", "somebody else's")
    site = install(tmp_path, "3.2.1")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bert4rec_hf.evaluation.provenance import current_commit, package_version\n"
        "print(current_commit(), package_version())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(site)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["unknown", "3.2.1"]


def test_a_checkout_that_is_not_installed_names_the_version_it_has(tmp_path, monkeypatch):
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = bert4rec_hf\nversion = 4.5\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "bert4rec_hf" / "a" / "b.py"))
    assert package_version() == "4.5"
