import resource

import pytest
import torch

from bert4rec_hf.training import limits
from bert4rec_hf.training.limits import address_space_room, describe_shortage, raise_file_limit


@pytest.fixture
def open_files(monkeypatch):
    """Pretend a soft and a hard limit; what is set in their place."""
    state = {"limits": (20, 20)}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda name: state["limits"])
    monkeypatch.setattr(
        limits.resource, "setrlimit", lambda name, values: state.update(limits=values)
    )
    return state


def test_workers_that_could_not_open_their_files_are_refused(open_files):
    message = (
        r"data.num_workers is 2, which takes 256 open files, and the system allows 20 \(ulimit"
    )
    with pytest.raises(ValueError, match=message):
        raise_file_limit(2)


def test_what_the_system_allows_is_asked_for(open_files):
    open_files["limits"] = (20, 1_000)
    raise_file_limit(3)
    assert open_files["limits"] == (128 + 3 * 64, 1_000)
    raise_file_limit(1)
    assert open_files["limits"] == (128 + 3 * 64, 1_000)


@pytest.mark.parametrize("allowed", [(20, resource.RLIM_INFINITY), (resource.RLIM_INFINITY,) * 2])
def test_without_a_hard_limit_nothing_is_refused(open_files, allowed):
    open_files["limits"] = allowed
    raise_file_limit(4)
    assert open_files["limits"][0] in (384, resource.RLIM_INFINITY)


def test_without_workers_no_limit_is_touched(open_files):
    raise_file_limit(0)
    assert open_files["limits"] == (20, 20)


def test_a_limit_of_memory_leaves_what_is_not_used_yet(open_files):
    open_files["limits"] = (2**50, 2**50)
    (room,) = address_space_room()
    assert 0 < room < 2**50
    open_files["limits"] = (2**20, 2**20)
    assert list(address_space_room()) == [0]
    open_files["limits"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert list(address_space_room()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_a_lack_of_memory_is_told_in_one_line(error):
    text = describe_shortage(error)
    assert text.startswith("out of memory: ")
    assert "continue with --resume" in text
    assert "\n" not in text


def test_a_killed_worker_is_told(capsys):
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert describe_shortage(error).startswith("DataLoader worker (pid 7) is killed by signal")


def test_other_errors_are_not_taken_for_a_shortage():
    assert describe_shortage(RuntimeError("size mismatch")) == ""
