import platform
import subprocess
from importlib.metadata import version

from accelerate import Accelerator

from bert4rec_hf.evaluation import provenance as module
from bert4rec_hf.evaluation.provenance import current_commit, provenance


def test_commit_device_and_versions_are_told():
    origin = provenance(Accelerator(cpu=True))
    assert origin["device"]["type"] == "cpu"
    assert origin["device"]["name"]
    assert (origin["num_processes"], origin["mixed_precision"]) == (1, "no")
    assert origin["dynamo_backend"] == "no"
    assert origin["versions"]["python"] == platform.python_version()
    assert origin["versions"]["torch"] == version("torch")


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
