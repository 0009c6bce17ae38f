"""Where the time and the memory of some steps go: a trace to look at and a table to read."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.autograd.profiler_util import EventList
from torch.profiler import profile

logger = logging.getLogger(__name__)

WARMUP_STEPS = 4
"""Steps before those that are profiled; in the last of them the profiler itself warms up."""

NUM_OPERATIONS = 40
"""Lines of the table."""

NUM_SUMMARIZED = 10
"""Operations of the summary."""


@contextmanager
def profile_steps(
    accelerator: Accelerator, folder: Path, num_steps: int
) -> Iterator[Callable[[], None]]:
    """Profile some of the steps that are taken in this context, after a few to warm up.

    Each process writes `process-<index>.pt.trace.json`, which Perfetto and TensorBoard open;
    `process-<index>.txt`, a table of the operations that take most time; and the same in short as
    `process-<index>.json`.

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
        summary = json.dumps(summarize_operations(profiler), indent=2)
        path.with_suffix(".json").write_text(summary + "\n", encoding="utf-8")

    schedule = {"wait": WARMUP_STEPS - 1, "warmup": 1, "active": num_steps, "repeat": 1}
    settings = ProfileKwargs(schedule_option=schedule, on_trace_ready=write, profile_memory=True)
    with accelerator.profile(settings) as profiler:
        yield profiler.step
    if profiler.step_num < WARMUP_STEPS:
        logger.warning(
            "nothing was profiled: there were %d steps, and the first %d are warmup",
            profiler.step_num,
            WARMUP_STEPS,
        )


def render_operations(profiler: profile) -> str:
    """Tell what the profiled operations took themselves, of time on CPU and device and of memory.

    Those that took the device longest come first; the CPU, where it was alone.
    """
    operations = profiler.key_averages()
    order = f"self_{slower_side(operations)}_time_total"
    return operations.table(sort_by=order, row_limit=NUM_OPERATIONS, max_name_column_width=80)


def summarize_operations(profiler: profile) -> list[dict[str, Any]]:
    """Name the operations that took most time themselves: their calls, and their share of all."""
    operations = profiler.key_averages()
    side = slower_side(operations)
    times = {each.key: getattr(each, f"self_{side}_time_total") for each in operations}
    # The profiler's own bracket around a step.
    times = {name: time for name, time in times.items() if not name.startswith("ProfilerStep")}
    calls = {each.key: each.count for each in operations}
    total = sum(times.values())
    longest = sorted(times, key=times.get, reverse=True)[:NUM_SUMMARIZED]
    return [
        {"name": name, "side": side, "calls": calls[name], "time_share": times[name] / total}
        for name in longest
    ]


def slower_side(operations: EventList) -> str:
    """Where to look for what takes time: the device, if there was one, else the CPU."""
    return "device" if any(each.self_device_time_total for each in operations) else "cpu"
