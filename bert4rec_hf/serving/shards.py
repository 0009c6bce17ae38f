"""A folder of parquet files, one for each part of the users, that a killed job goes on with.

recs/00000-of-00073.parquet …    finished shards, nothing else
recs.json                        what they were made from, and what came out
.recs-parts/                     the users dealt out; gone when all shards are there
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState


class Shards:
    """The output of one job, shared by all processes of accelerate.

    Args:
        output: The folder of shards.
        identity: What must be the same when the job is gone on with.

    Raises:
        ValueError: The folder holds the output of another job, or of an unknown one.
    """

    def __init__(self, output: Path, identity: dict[str, Any]):
        self.output, self.identity = output, identity
        self.state = PartialState()
        self.record = output.with_name(f"{output.name}.json")
        self.parts = output.with_name(f".{output.name}-parts")
        self._check()

    def _check(self) -> None:
        """Refuse to mix the shards of two jobs."""
        if not self.record.is_file():
            if self.output.exists():
                raise ValueError(
                    f"{self.output} exists, but {self.record.name}, which describes what "
                    "it holds, is missing beside it; choose another --output or remove it"
                )
            return
        before = self._read()["job"]
        for name, now in self.identity.items():
            if before.get(name) != now:
                raise ValueError(
                    f"{self.output} was started with {name} {before.get(name)!r}, and it is "
                    f"{now!r} now; go back to what it was, choose another --output, or "
                    f"remove the folder and {self.record.name}"
                )

    def _read(self) -> dict[str, Any]:
        return json.loads(self.record.read_text(encoding="utf-8"))

    def prepare(self, deal_out: Callable[[Path, int | None], int]) -> None:
        """Deal the users out to parts, on one process and unless it was done before.

        Args:
            deal_out: Writes the folder of parts it is given, as many as it is told or, told None,
                as it chooses, and returns how many there are.
        """
        if self.state.is_main_process:
            begun = self.record.is_file()
            self.num_parts = self._read()["num_parts"] if begun else None
            if not begun or (not self.parts.is_dir() and self._unfinished()):
                shutil.rmtree(self.parts, ignore_errors=True)
                self.output.parent.mkdir(parents=True, exist_ok=True)
                self.num_parts = deal_out(self.parts, self.num_parts)
            if not begun:
                self._write_record({"job": self.identity, "num_parts": self.num_parts})
            self.output.mkdir(exist_ok=True)
        self.state.wait_for_everyone()
        self.num_parts = self._read()["num_parts"]

    def path(self, number: int) -> Path:
        """Where a shard is when it is finished."""
        return self.output / f"{number:05d}-of-{self.num_parts:05d}.parquet"

    def _unfinished(self) -> list[int]:
        return [number for number in range(self.num_parts) if not self.path(number).is_file()]

    def pending(self) -> list[int]:
        """Parts that this process is to answer."""
        numbers = self._unfinished()
        self.state.wait_for_everyone()  # nobody writes before all have looked
        return numbers[self.state.process_index :: self.state.num_processes]

    def write(self, number: int, table: pl.DataFrame, counts: dict[str, int]) -> None:
        """Write a shard aside and rename it.

        Args:
            number: Of its part.
            table: Its rows.
            counts: What is summed up over all shards, kept in the file's metadata.
        """
        unfinished = self.parts / f"{number:05d}-{os.getpid()}.parquet"
        metadata = {"counts": json.dumps(counts)}
        table.write_parquet(unfinished, row_group_size=2**18, metadata=metadata)
        unfinished.replace(self.path(number))

    def finish(self) -> dict[str, Any]:
        """Sum up, once all processes are done, and remove the parts.

        Returns:
            The sums of the counts of all shards, with `shards` and `rows`.
        """
        self.state.wait_for_everyone()
        paths = [self.path(number) for number in range(self.num_parts)]
        counts = [json.loads(pl.read_parquet_metadata(path)["counts"]) for path in paths]
        totals = {name: sum(each[name] for each in counts) for name in counts[0]}
        totals |= {"shards": len(paths)}
        if self.state.is_main_process:
            self._write_record({"job": self.identity, "num_parts": self.num_parts, **totals})
            shutil.rmtree(self.parts, ignore_errors=True)
        return totals

    def join(self, path: Path) -> None:
        """Put the finished shards together to one file, and remove them.

        Args:
            path: The file, which appears when all is in it.
        """
        unfinished = path.with_name(f".{path.name}-unfinished")
        paths = [self.path(number) for number in range(self.num_parts)]
        pl.scan_parquet(paths).sink_parquet(unfinished)
        unfinished.replace(path)
        shutil.rmtree(self.output)
        self.record.unlink()

    def _write_record(self, content: dict[str, Any]) -> None:
        unfinished = self.record.with_name(f".{self.record.name}-unfinished")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.record)
