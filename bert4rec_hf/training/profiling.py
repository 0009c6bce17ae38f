"""Where the time and the memory of some steps go: a trace to look at and a table to read."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.profiler import profile

logger = logging.getLogger(__name__)

WARMUP_STEPS = 4
"""Steps before those that are profiled; in the last of them the profiler itself warms up."""

NUM_OPERATIONS = 40
"""Lines of the table."""


@contextmanager
def profile_steps(
    accelerator: Accelerator, folder: Path, num_steps: int
) -> Iterator[Callable[[], None]]:
    """Profile some of the steps that are taken in this context, after a few to warm up.

    Each process writes `process-<index>.pt.trace.json`, which Perfetto and TensorBoard open, and
    `process-<index>.txt`, a table of the operations that take most time.

    Args:
        accelerator: Tells the processes apart.
        folder: Made if need be; files of an earlier profile are replaced.
        num_steps: Steps to profile; at 0 nothing happens.

    Yields:
        What is to be called at the end of every step.

    Raises:
        ValueError: The number of steps is negative.
    """
    if num_steps < 0:
        raise ValueError(f"steps to profile must be 0 or more, got {num_steps}")
    if num_steps == 0:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"process-{accelerator.process_index}"
        profiler.export_chrome_trace(f"{path}.pt.trace.json")
        path.with_suffix(".txt").write_text(render_operations(profiler), encoding="utf-8")

    schedule = {"wait": WARMUP_STEPS - 1, "warmup": 1, "active": num_steps, "repeat": 1}
    settings = ProfileKwargs(schedule_option=schedule, on_trace_ready=write, profile_memory=True)
    with accelerator.profile(settings) as profiler:
        yield profiler.step
    if profiler.step_num < WARMUP_STEPS:
        logger.warning(
            "nothing was profiled, as there were %d steps and the first %d are to warm up",
            profiler.step_num,
            WARMUP_STEPS,
        )


def render_operations(profiler: profile) -> str:
    """Tell what the profiled operations took themselves, of time on CPU and device and of memory.

    Those that took the device longest come first; the CPU, where it was alone.
    """
    operations = profiler.key_averages()
    has_device = any(operation.self_device_time_total for operation in operations)
    order = "self_device_time_total" if has_device else "self_cpu_time_total"
    return operations.table(sort_by=order, row_limit=NUM_OPERATIONS, max_name_column_width=80)
