"""SIGTERM, SIGINT and SIGHUP: the first asks to stop, another one stops at once.

While training steps, being asked is remembered until the step is over and a checkpoint is written.
Everywhere else `Interrupted` is raised where the signal comes in. A signal that was ignored when
the process began, as by nohup, stays so.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run")

SAME_SECONDS = 1.0
"""Signals this close are one: a closing terminal sends two."""


class Interrupted(SystemExit):
    """The process was asked to stop; leaves it with the status that shells give to the signal.

    Args:
        number: Of the signal.
        place: Where the work stands, such as `after step 7`; can be empty.
    """

    def __init__(self, number: int, place: str = ""):
        super().__init__(128 + number)
        self.number = number
        self.place = place

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"stopped by {name}{f' {self.place}' if self.place else ''}"


class _Request:
    """What this process was asked for."""

    def __init__(self) -> None:
        self.number = 0
        self.time = 0.0
        self.is_deferred = False
        self.launcher = 0
        """Process that must live on for this one to do so."""

    def take(self, number: int, frame: FrameType | None) -> None:
        """Be the handler of the signals."""
        if self.number:
            if time.monotonic() - self.time > SAME_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self.time = number, time.monotonic()
        if not self.is_deferred:
            raise Interrupted(number)


_request = _Request()


def asked_to_stop() -> int:
    """The signal that asked this process to stop, or 0; SIGTERM where its launcher is gone.

    `accelerate launch` does not tell its only process that it is told to stop.
    """
    if not _request.number and _request.launcher and os.getppid() != _request.launcher:
        _request.number, _request.time = signal.SIGTERM, time.monotonic()
    return _request.number


@contextmanager
def stopping_on_signals(advise: Callable[[], str]) -> Iterator[None]:
    """Exit on signals, with one line on what happened and how to go on.

    Args:
        advise: Says how to go on.
    """
    if threading.current_thread() is not threading.main_thread():  # nobody else is sent signals
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _request.take)
    _request.number, _request.launcher = 0, find_launcher()
    try:
        yield
    except Interrupted as interrupted:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{interrupted}; {advise()}\n")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def deferring_signals(*, is_deferred: bool = True) -> Iterator[None]:
    """Remember signals for `asked_to_stop` instead of raising `Interrupted`; or the other way."""
    before, _request.is_deferred = _request.is_deferred, is_deferred
    try:
        if not is_deferred and _request.number:
            raise Interrupted(_request.number)
        yield
    finally:
        _request.is_deferred = before


def find_launcher() -> int:
    """The parent process, if it is one that starts training on several devices; else 0."""
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
    except psutil.Error:
        return 0
    is_launcher = any(
        Path(word).name in LAUNCHERS or word in LAUNCHER_MODULES for word in words[:4]
    )
    return parent.pid if is_launcher else 0


def ignore_signals(_worker: int) -> None:
    """Leave them to the training process, in a loader's worker that gets them as well."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
