"""What one process finds out, all of them know: they fail together, or go on together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

from bert4rec_hf.training.interruption import asked_to_stop

Value = TypeVar("Value")


@contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """Wait for all processes at the end; where one could not read or write, none goes on.

    Raises:
        OSError: What the first of those said that failed so.
        ValueError: Likewise.
    """
    problems: list[tuple[bool, str]] = []
    try:
        yield
    except (OSError, SafetensorError) as error:
        problems = [(True, describe(error))]
    except ValueError as error:
        problems = [(False, str(error))]
    for is_system, text in gather_object(problems):
        raise (OSError if is_system else ValueError)(text)


def describe(error: Exception) -> str:
    """Say what an operating system found wrong, without its number.

    >>> describe(OSError(28, "No space left on device", "run.json"))
    'run.json: No space left on device'
    """
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename  # of a copy, where it should have gone
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error)


def from_main_process(value: Value) -> Value:
    """What the main process has for it, on all of them."""
    return broadcast_object_list([value])[0]


class StopAgreement:
    """Lets all processes stop after the same step, though a signal may reach just one of them.

    What each was asked for is put together while the next step computes, so that nobody waits.
    """

    def __init__(self, accelerator: Accelerator):
        is_shared = accelerator.num_processes > 1
        self._group = dist.new_group(backend="gloo") if is_shared else None
        self._asked = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def number(self) -> int:
        """The signal to stop by after this step, the same on every process; 0 for none."""
        if self._group is None:
            return asked_to_stop()
        number = self.settle()
        self._asked.fill_(asked_to_stop())
        self._work = dist.all_reduce(self._asked, dist.ReduceOp.MAX, self._group, async_op=True)
        return number

    def settle(self) -> int:
        """Wait for what was put together last; 0 if nothing was."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._asked)
