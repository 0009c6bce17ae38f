import shutil

import pytest
from accelerate import Accelerator
from safetensors import SafetensorError

from bert4rec_hf.training.agreement import StopAgreement, describe, failing_together


def test_what_could_not_be_copied_is_named_by_where_it_should_have_gone(tmp_path):
    error = OSError(28, "No space left on device", "there.py", None, str(tmp_path / "here.py"))
    assert describe(error) == f"{tmp_path}/here.py: No space left on device"
    (tmp_path / "there.py").touch()
    with pytest.raises(FileNotFoundError) as caught:
        shutil.copyfile(tmp_path / "there.py", tmp_path / "none" / "here.py")
    assert describe(caught.value) == f"{tmp_path}/none/here.py: No such file or directory"


def test_an_error_of_safetensors_is_one_of_the_system():
    with pytest.raises(OSError, match="No space left"), failing_together(Accelerator(cpu=True)):
        raise SafetensorError("I/O error: No space left on device")


def test_a_wrong_value_stays_one():
    with pytest.raises(ValueError, match="not 3"), failing_together(Accelerator(cpu=True)):
        raise ValueError("not 3")


def test_one_process_agrees_with_itself(monkeypatch):
    agreement = StopAgreement(Accelerator(cpu=True))
    assert agreement.number() == 0
    monkeypatch.setattr("bert4rec_hf.training.agreement.asked_to_stop", lambda: 15)
    assert agreement.number() == 15
