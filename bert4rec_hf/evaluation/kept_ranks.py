"""What has been ranked so far, kept on disk, so that an evaluation that was killed goes on.

Each process writes its own share, a file after every so many histories, aside first. Small
evaluations write nothing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.numpy import load_file, save_file
from torch import Tensor

IDENTITY = "evaluation.json"
HISTORIES_APART = 2**17
"""Histories of a process between two files: some minutes' work where a catalog is large."""


class KeptRanks:
    """A folder of ranks, which goes on only with the evaluation that began it.

    Args:
        folder: Made when there is something to keep.
        identity: All that ranks depend on; texts, numbers and lists.

    Raises:
        ValueError: The folder holds ranks of another evaluation.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder = folder
        self.identity = identity | {"num_processes": PartialState().num_processes}
        path = folder / IDENTITY
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self.identity
        for name, now in self.identity.items():
            if before.get(name) != now:
                raise ValueError(
                    f"{folder} holds ranks of an evaluation with {name} {before.get(name)!r}, and "
                    f"it is {now!r} now; go back to what it was, or remove the folder"
                )

    def of(self, name: str) -> "KeptShare":
        """What this process has ranked of a contestant and a split, by a name of theirs."""
        return KeptShare(self, f"{name}-{PartialState().process_index}")

    def prepare(self) -> None:
        """Make the folder, which says what it belongs to before it holds anything."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / IDENTITY
        if not path.is_file():
            unfinished = path.with_suffix(f".{PartialState().process_index}")
            unfinished.write_text(json.dumps(self.identity), encoding="utf-8")
            unfinished.replace(path)

    def remove(self) -> None:
        """Clean up, when all processes are done."""
        state = PartialState()
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)


class KeptShare:
    """The files of one share, numbered from 0."""

    def __init__(self, kept: KeptRanks, name: str):
        self.kept, self.name = kept, name
        self.num_files = 0

    def load(self, ranked: np.ndarray, repeats: np.ndarray, is_met: Tensor) -> int:
        """Read what was ranked.

        Args:
            ranked: (share,) whose first ranks are filled in.
            repeats: (share,) likewise.
            is_met: (kinds, vocab) of DistinctItems, which gets what was met.

        Returns:
            How many histories these are.
        """
        done = 0
        while (path := self._path(self.num_files)).is_file():
            tensors = load_file(path)
            part = slice(done, done + len(tensors["ranked"]))
            ranked[part], repeats[part], done = tensors["ranked"], tensors["repeats"], part.stop
            met = np.unpackbits(tensors["met"], count=is_met.numel()).astype(bool)
            is_met |= torch.from_numpy(met).view_as(is_met)
            self.num_files += 1
        return done

    def save(self, ranked: np.ndarray, repeats: np.ndarray, is_met: Tensor) -> None:
        """Write what was ranked since the last file, and all that was met."""
        self.kept.prepare()
        path = self._path(self.num_files)
        unfinished = path.with_suffix(".unfinished")
        met = np.packbits(is_met.numpy())
        save_file({"ranked": ranked, "repeats": repeats, "met": met}, unfinished)
        unfinished.replace(path)
        self.num_files += 1

    def _path(self, number: int) -> Path:
        return self.kept.folder / f"{self.name}-{number:06d}.safetensors"
