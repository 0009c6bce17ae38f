"""The plan as text, with what each time rests on; and the formulas beside what was measured."""

from collections.abc import Callable, Iterator
from typing import Any

from .devices import PEAKS, Rates, peak_rates, read_measured
from .plan import Plan
from .step import Work

GB = 1e9
INTRODUCTION = """# Planned and measured

What `bert4rec plan` says, beside what was measured, for every committed result that it speaks of;
rendered by `bert4rec report` from `results/planning/predicted.json`, which
`python -m bert4rec_hf.lab.planning.comparison` writes. The plan knows of a dataset only the number
of its items, users and interactions. Times are operations and bytes at two rates, fitted to the
steps in the other results files of the same device (`cpu1`: one thread, `cpu2`: two); memory is
what the check before every training estimates, without libraries. Results are of several commits
and machines, and older code was slower.
"""


def render_plan(plan: Plan, device: str, precision: str, share: float) -> str:
    """Say what everything takes.

    Args:
        plan: Of an experiment and a dataset.
        device: A name of PEAKS or of a measured device.
        precision: Accelerate's mixed precision.
        share: Of the peak, assumed of a device that was not measured.

    Raises:
        ValueError: Nothing is known of the device, or the share is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--share must be in (0, 1], got {share}")
    known = read_measured()
    lines = [*describe_memory(plan, device), "", *describe_preparing(plan, known["preparing"]), ""]
    measured = known["rates"].get(device, {})
    if {precision, "no"} <= measured.keys():
        lines += describe_measured(plan, measured, precision)
    elif device in PEAKS:
        lines += describe_bound(plan, device, precision, share)
    else:
        raise ValueError(unknown_device(device, precision, known["rates"]))
    return "\n".join(lines)


def unknown_device(device: str, precision: str, rates: dict[str, Any]) -> str:
    """Name what there is in its place."""
    there = [f"{name} ({', '.join(each)})" for name, each in rates.items()]
    return (
        f"nothing was measured on the device {device} with precision {precision}; measured are "
        f"{', '.join(there)}, and the public peaks of {', '.join(PEAKS)} are known"
    )


def describe_memory(plan: Plan, device: str) -> Iterator[str]:
    """What a step holds, by what it is; what the start takes, and a checkpoint on disk."""
    yield f"memory of a training step  {plan.memory}"
    if device in PEAKS:
        room = PEAKS[device].memory_bytes
        fits = "fits into" if plan.memory.total <= room else "does NOT fit into"
        yield f"                           {fits} the {room / GB:,.0f} GB of {PEAKS[device].name}"
    if plan.start_bytes:
        yield f"before it, on the CPU      {plan.start_bytes / GB:,.2f} GB to count co-occurrence"
    yield f"a checkpoint on disk       {plan.checkpoint_bytes / GB:,.2f} GB"


def describe_preparing(plan: Plan, preparing: dict[str, Any]) -> Iterator[str]:
    """What reading and splitting the interactions takes, by format; on one CPU thread."""
    rows = plan.size.num_interactions
    for name, each in preparing.items():
        yield (
            f"preparing {name:<16} {say_time(rows * each['seconds_per_row'])} of one processor, "
            f"{rows * each['bytes_per_row'] / GB:,.1f} GB; in proportion to 3 million measured rows"
        )


def describe_measured(
    plan: Plan, measured: dict[str, dict[str, Any]], precision: str
) -> Iterator[str]:
    """Times by fitted rates, and how far they were off so far."""
    names = ("seconds_per_operation", "seconds_per_byte")

    def say(work: Work, precision: str) -> str:
        rates = Rates(**{name: measured[precision][name] for name in names})
        return say_time(rates.seconds(work))

    yield from _stage_lines(plan, precision, say)
    of_steps = measured[precision]
    low, median, high = of_steps["spread"]
    yield (
        f"by rates fitted to {of_steps['results']} committed results of "
        f"{' and '.join(of_steps['devices'])}, whose times were {low:.2f} to {high:.2f} times what "
        f"the others predict ({median:.2f} in the median); see model_cards/planning.md"
    )


def describe_bound(plan: Plan, device: str, precision: str, share: float) -> Iterator[str]:
    """Bounds by what the maker says, and what they come to at an assumed share of it."""
    peak = PEAKS[device]

    def say(work: Work, precision: str) -> str:
        whole, part = (peak_rates(device, precision, each).bound(work) for each in (1.0, share))
        return f"over {say_time(whole)}; {say_time(part)} at {share:.0%}"

    yield from _stage_lines(plan, precision, say)
    yield (
        f"nothing was measured on {peak.name}: these are bounds by the public peaks of "
        f"{peak.operations[precision] / 1e12:,.1f} TFLOP/s ({precision}; ranking computes in "
        f"float32, {peak.operations['no'] / 1e12:,.1f}) and "
        f"{peak.bytes_per_second / 1e12:,.2f} TB/s ({peak.source}), and what they come to if "
        f"{share:.0%} of either is reached, which is assumed (--share)"
    )


def _stage_lines(plan: Plan, precision: str, say: Callable[[Work, str], str]) -> Iterator[str]:
    """A line of each stage; items are ranked in single precision whatever they are trained in."""
    stages = [
        *((name, work, precision) for name, work in plan.training_stages().items()),
        *((name, work, "no") for name, work in plan.ranking_stages().items()),
    ]
    width = max(len(name) for name, *_ in stages)
    for name, work, of_stage in stages:
        yield (
            f"{name:<{width}}  {say(work, of_stage)}  "
            f"({work.operations:.2g} operations, {work.bytes / GB:,.3g} GB moved)"
        )


def say_time(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> say_time(0.0123), say_time(90.0), say_time(7_200.0), say_time(300_000.0)
    ('12.3 ms', '90.0 s', '2.0 hours', '3.5 days')
    """
    for unit, size, most in (("ms", 1e-3, 1), ("s", 1, 120), ("minutes", 60, 7_200)):
        if seconds < most:
            return f"{seconds / size:,.1f} {unit}"
    hours = seconds / 3_600
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def render_comparison(results: dict[str, Any]) -> str:
    """The committed card: a line for each result."""
    head = "| results | what | device | predicted | measured | measured / predicted |"
    lines = [INTRODUCTION, head, "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        say = say_time if row["unit"] == "s" else _megabytes
        lines.append(
            f"| {row['file']} | {row['what']} | {row['device']} | {say(row['predicted'])} | "
            f"{say(row['measured'])} | {row['measured'] / row['predicted']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
