"""Contestants side by side: each in its process, taking turns, compared round by round."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bert4rec_hf.lab.benchmark.contestants import PEERS
from bert4rec_hf.lab.benchmark.task import Task
from bert4rec_hf.lab.benchmark.workloads import MODES

ROOT = Path(__file__).parents[3]
"""Where the package is found; the interpreter of a peer need not have it installed."""

PROFILED_STEPS = 3

STARTING_SHARE = 0.7
"""Of the time of a tournament; none is started later, so that those who were have their turns."""

TIME_IS_UP = "left out, as the time was up"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure."""

    mode: str = "train"
    """What the contestants are asked: `train`, `evaluate` or `collate`."""

    rounds: int = 5
    """Turns of each contestant that count."""

    batches: int = 1
    """Per turn."""

    warmup_batches: int = 1
    """Before the first turn; they take allocations and compilation on them."""

    bases: tuple[str, ...] = ()
    """Labels of those the others are compared with; everyone who is not of ours when empty."""

    threads: int = 1
    """Of each contestant, only one of which is at work at a time."""

    peer_python: str = sys.executable
    """Interpreter that has the peers."""

    max_memory_gb: float | None = None
    """What one process may allocate on the CPU."""

    seconds: float | None = None
    """After which nothing more is begun, and what goes on is stopped; None takes all the time."""

    profile_folder: str | None = None
    """Where to write profiles of training steps, after the last turn; not of peers."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.profile_folder and self.mode != "train":
            raise ValueError(f"only training is profiled: mode must be train, got {self.mode!r}")
        for name in ("rounds", "batches", "warmup_batches", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(kw_only=True)
class Record:
    """What one contestant did."""

    label: str
    task: Task
    failure: str | None = None
    """Why there are no numbers, or no more of them."""

    parameters: int | None = None
    trainable: int | None = None
    """How many of them are trained."""

    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries in its interpreter."""

    warmup_seconds: float | None = None
    peak_memory_bytes: int | None = None
    """Above what its process held before there was a model."""

    process_memory_bytes: int | None = None
    """On a CPU that of all, libraries included; on a GPU what was allocated there."""

    operations: list[dict[str, Any]] = field(default_factory=list)
    """What took most of the profiled steps, see summarize_operations."""

    turns: list[dict[str, float]] = field(default_factory=list)
    """`seconds`, `histories` and `items` of each round."""

    def add(self, answer: dict[str, Any]) -> None:
        """Note a turn; the peak of memory is that of all turns so far."""
        self.peak_memory_bytes = answer.pop("peak_memory_bytes")
        self.process_memory_bytes = answer.pop("process_memory_bytes")
        self.turns.append(answer)


class ContestantStoppedError(Exception):
    """A contestant's process has ended, and why."""


class ContestantProcess:
    """One contestant, waiting for its turn."""

    def __init__(self, task: Task, plan: Plan, deadline: float | None = None):
        self.mode, self.deadline = plan.mode, deadline
        order = {
            "task": task.to_dict(),
            "mode": plan.mode,
            "max_memory_gb": plan.max_memory_gb,
        }
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed on exit
        self.process = subprocess.Popen(
            [
                plan.peer_python if task.contestant in PEERS else sys.executable,
                *("-m", "bert4rec_hf.lab.benchmark.worker", json.dumps(order)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | worker_environment(plan.threads),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, batches: int, **other: str) -> dict[str, Any]:
        """Ask for a number of batches, and wait for the answer.

        Args:
            batches: How many.
            other: Another `mode` than that of the plan, and what it needs.

        Raises:
            ContestantStoppedError: The process ended over it.
        """
        try:
            request = {"mode": self.mode, "batches": batches} | other
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ContestantStoppedError(self._last_words()) from error
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer; the first one comes unasked, when the model is built.

        Raises:
            ContestantStoppedError: There will be none.
        """
        with self._stopping_at_deadline():
            line = self.process.stdout.readline()
        if not line:
            raise ContestantStoppedError(self._last_words())
        return json.loads(line)

    @contextmanager
    def _stopping_at_deadline(self) -> Iterator[None]:
        if self.deadline is None:
            yield
            return
        timer = threading.Timer(max(0, self.deadline - time.monotonic()), self.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        code = self.process.wait()
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME_IS_UP
        if code < 0:
            return f"ended by signal {-code}" + (": out of memory" if code == -9 else "")
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {code}"


def worker_environment(threads: int) -> dict[str, str]:
    """Environment in which a worker finds this package and computes on so many threads."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Its threads spin for about a millisecond before they rest: those of a contestant that
        # waits are in nobody's way, and to let them rest at once would cost many small operations.
        "OMP_NUM_THREADS": str(threads),
    }


def run_tournament(tasks: dict[str, Task], plan: Plan) -> list[Record]:
    """Let all contestants warm up and then take turns, round by round.

    Args:
        tasks: By label.
        plan: How to measure.

    Returns:
        What each did, those that failed included.
    """
    records = [Record(label=label, task=task) for label, task in tasks.items()]
    start = time.monotonic()
    deadline = None if plan.seconds is None else start + plan.seconds
    with ExitStack() as stack:
        processes = {}
        for record in records:  # one after the other, so that no warm-up disturbs another
            if deadline is not None and time.monotonic() > start + STARTING_SHARE * plan.seconds:
                record.failure = TIME_IS_UP
                continue
            process = stack.enter_context(ContestantProcess(record.task, plan, deadline))
            processes[record.label] = process
            with noting_failure(record):
                built = process.answer()
                record.parameters, record.trainable = built["parameters"], built["trainable"]
                record.versions = built["versions"]
                record.warmup_seconds = process.ask(plan.warmup_batches)["seconds"]
        for _ in range(plan.rounds):
            for record in records:
                if record.failure is None:
                    with noting_failure(record):
                        record.add(processes[record.label].ask(plan.batches))
        if plan.profile_folder:
            write_profiles(records, processes, Path(plan.profile_folder))
    return records


def write_profiles(
    records: list[Record], processes: dict[str, ContestantProcess], folder: Path
) -> None:
    """Profile some training steps of each contestant that goes through accelerate."""
    for record in records:
        if record.failure is None and record.task.contestant not in PEERS:
            with noting_failure(record):
                own = folder / re.sub(r"\W+", "-", record.label)
                processes[record.label].ask(PROFILED_STEPS, mode="profile", folder=str(own))
                record.operations = json.loads((own / "process-0.json").read_text())


@contextmanager
def noting_failure(record: Record) -> Iterator[None]:
    """Let the others go on where one contestant stops."""
    try:
        yield
    except ContestantStoppedError as stopped:
        record.failure = str(stopped)
