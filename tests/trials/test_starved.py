"""Too little disk, memory or open files; a folder that cannot be written; damaged checkpoints."""

import os
import shutil
import subprocess

import pytest

from bert4rec_hf.training.checkpoint import find_checkpoints

AREA = "starved"
SURVIVED = "told in one line or by warnings, then finished as if undisturbed"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")


@pytest.fixture
def disk(tmp_path):
    """A file system in memory, of a size that can be set."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes, option="rw"):
        remount = "remount," if os.path.ismount(folder) else ""
        options = f"{remount}size={kilobytes}k,{option}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        return folder

    try:
        resize(64)
    except subprocess.CalledProcessError:
        pytest.skip("this container may not mount a file system")
    yield resize
    subprocess.run(["umount", "-l", folder], check=True)


def assert_clear(started):
    """It ended with an error of ours in one line, or did not need what there was none of."""
    status = started.wait()
    assert "Traceback" not in started.output
    if status:
        assert status == 2, started.output
        assert started.output.splitlines()[-1].startswith("error: ")
    return status


def check_full_disk(kilobytes, disk, train, finish):
    """Train on a disk of a size; then there is room, and the run is finished."""
    output = disk(kilobytes) / "run"
    started = train(output)
    status = assert_clear(started)
    assert status == 0 or ": No space left on device" in started.output.splitlines()[-1]
    disk(20_000)
    finish(output)
    shutil.rmtree(output)
    return status


@needs_root
def test_a_full_disk_is_told_and_the_run_goes_on_where_there_is_room(disk, train, finish, note):
    assert check_full_disk(140, disk, train, finish) == 2
    note(AREA, "disk full", SURVIVED)


@needs_root
@pytest.mark.slow
def test_a_disk_that_is_full_at_any_place_costs_nothing(disk, train, finish, note):
    statuses = []
    for kilobytes in [*range(4, 420, 32), 1_000]:
        statuses.append(check_full_disk(kilobytes, disk, train, finish))
        note(AREA, "disk full", SURVIVED)
    assert set(statuses) == {0, 2}


@needs_root
def test_a_folder_that_cannot_be_written_is_named(disk, train, note):
    output = disk(64, "ro") / "run"
    started = train(output)
    assert started.wait() == 2
    assert started.output.splitlines()[-1] == f"error: {output}: Read-only file system"
    note(AREA, "read-only folder", "refused, the folder named")


def test_too_few_open_files_for_the_workers_are_told(train, tmp_path, note):
    started = train(tmp_path / "run", "--data.num_workers", 2, RLIMIT_NOFILE=20)
    assert started.wait() == 2
    assert "data.num_workers is 2, which takes 256 open files, and the system allows 20" in (
        started.output
    )
    assert not (tmp_path / "run").exists()
    note(AREA, "20 open files, two workers", "refused with the way out")


def test_a_limit_of_memory_is_told(train, tmp_path, note):
    settings = ["--model.hidden_size", 3_000, "--model.intermediate_size", 12_000]
    started = train(tmp_path / "run", *settings, RLIMIT_AS=3_000_000_000)
    assert_clear(started)
    assert "memory" in started.output.splitlines()[-1] or "GB are available" in started.output
    note(AREA, "memory limited to 3 GB", "refused or told in one line")


def flip_bit(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"a flipped bit": flip_bit, "a truncation": cut, "a missing file": os.unlink}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(copy_of, finish, note, damage):
    """Every file of the newest in turn, as if the run had been killed before its results."""
    newest = find_checkpoints(copy_of / "checkpoints")[-1]
    for name in sorted(path.name for path in newest.iterdir()):
        shutil.rmtree(copy_of / "checkpoints" / "damaged-step-00000120", ignore_errors=True)
        DAMAGES[damage](newest / name)
        again = finish(copy_of)
        assert f"{newest} is damaged: " in again.output
        note(AREA, f"{damage} in a checkpoint", "named; the one before taken, same weights")
