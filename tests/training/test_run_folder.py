import json
import subprocess
import sys
import time

import pytest
from accelerate import Accelerator

from bert4rec_hf.training import run_folder
from bert4rec_hf.training.run_folder import clean_up, open_output, write_whole

HOLD = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from bert4rec_hf.training.run_folder import open_output
accelerator = Accelerator(cpu=True)
with open_output(Path(sys.argv[1]), {identity}, accelerator, is_resumed=False):
    print("held", flush=True)
    time.sleep(60)
"""


def identify(**settings):
    training = {"gradient_accumulation_steps": 1, "max_steps": 8, "seed": 0}
    sections = {"training": training, "card": {"dataset_name": "generated"}}
    for name, value in settings.items():
        section, setting = name.split("__")
        sections[section] = sections[section] | {setting: value}
    return {"num_processes": 1, "dataset_fingerprint": "af", "experiment": sections}


def begin(output, is_resumed=False, **settings):
    accelerator = Accelerator(cpu=True)
    with open_output(output, identify(**settings), accelerator, is_resumed=is_resumed) as changes:
        return changes


@pytest.fixture
def holder(tmp_path):
    """A process that has begun a run in `held` and goes on for a minute."""
    code = HOLD.format(identity=identify())
    command = [sys.executable, "-c", code, str(tmp_path / "held")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_which_a_process_is_at_work_is_refused_until_that_dies(
    holder, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.2)
    with pytest.raises(ValueError, match="another process is using .*held; wait until it has"):
        begin(tmp_path / "held", is_resumed=True)
    holder.kill()
    holder.wait()
    assert begin(tmp_path / "held", is_resumed=True) == []


def test_a_lock_is_waited_for_a_while(holder, tmp_path):
    """Workers of the loader hold it a little longer than the process that was killed."""
    start = time.monotonic()
    killer = f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"
    with subprocess.Popen([sys.executable, "-c", killer]):
        begin(tmp_path / "held", is_resumed=True)
    assert 0.5 < time.monotonic() - start < run_folder.LOCK_SECONDS


def test_how_long_it_trains_and_what_no_weight_depends_on_may_change(tmp_path):
    output = tmp_path / "run"
    assert begin(output) == []
    assert begin(output, is_resumed=True, card__dataset_name="Generated, mended") == []
    changes = begin(output, is_resumed=True, training__max_steps=12)
    expected = [{"setting": "training.max_steps", "before": "8", "after": "12"}]
    assert changes == expected
    more = begin(output, is_resumed=True, training__max_steps=20, training__logging_steps=3)
    assert more == [*expected, {"setting": "training.max_steps", "before": "12", "after": "20"}]
    saved = json.loads((output / "run.json").read_text())
    assert saved["experiment"]["training"]["max_steps"] == 20
    assert "max_steps: 20" in (output / "experiment.yaml").read_text()


def test_what_changes_the_mathematics_is_shown_and_refused(tmp_path):
    output = tmp_path / "run"
    begin(output)
    before = (output / "run.json").read_bytes()
    message = "cannot be resumed: experiment.training.seed was 0 and is 1; restore the old set"
    with pytest.raises(ValueError, match=message):
        begin(output, is_resumed=True, training__seed=1, training__max_steps=12)
    assert (output / "run.json").read_bytes() == before


def test_what_a_killed_process_left_unfinished_goes_and_a_replaced_model_comes_back(tmp_path):
    for name in (".unfinished-model", ".replaced-model", "checkpoints/.unfinished-step-00000004"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".replaced-model" / "config.json").write_text("{}")
    (tmp_path / ".unfinished-results.json-123").write_text("{")
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    clean_up(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["checkpoints", "checkpoints/step-00000002", "model", "model/config.json"]


def test_a_replaced_model_goes_where_there_is_a_newer_one(tmp_path):
    for name in (".replaced-model", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    clean_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "model"


def test_a_folder_with_nothing_but_what_a_killed_process_left_is_new(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".unfinished-run.json-77").write_text("{")
    begin(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [".lock", "experiment.yaml", "run.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_rest(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "full").touch()
    with pytest.raises(OSError, match="a.json"):
        write_whole(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_of_an_older_version_goes_on_with_the_defaults_of_newer_settings(tmp_path):
    output = tmp_path / "run"
    begin(output)
    newer = {"training__added_neighbors": 0, "training__teachers": []}
    assert begin(output, is_resumed=True, **newer) == []
    with pytest.raises(ValueError, match="training.warmup_ratio was None and is 0.7"):
        begin(output, is_resumed=True, training__warmup_ratio=0.7)
