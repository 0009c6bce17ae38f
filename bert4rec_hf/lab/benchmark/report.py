"""What a tournament showed: rates, ratios and memory, as numbers and as a table."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from accelerate import Accelerator

from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.lab.benchmark.contestants import FLOORS
from bert4rec_hf.lab.benchmark.tournament import Plan, Record

PATHS = ("peer_python", "profile_folder")
"""Of a plan; they say nothing about what was measured."""

Row = dict[str, Any]
"""What the table says of one contestant."""


def collect_results(records: list[Record], plan: Plan, accelerator: Accelerator) -> dict[str, Any]:
    """Put together what was measured, how, and on what: everything for a file."""
    task = records[0].task
    return {
        "kind": "benchmark",
        "plan": {key: value for key, value in asdict(plan).items() if key not in PATHS},
        "workload": asdict(task.workload),
        "shape": asdict(task.shape),
        "summary": summarize(records, plan),
        "contestants": [describe_record(record) for record in records],
        **provenance(accelerator),
    }


def describe_record(record: Record) -> dict[str, Any]:
    """Tell what one contestant was set to and did, turn by turn."""
    fields = asdict(record)
    task = fields.pop("task")
    return fields | {name: task[name] for name in ("contestant", "settings", "seed")}


def summarize(records: list[Record], plan: Plan) -> list[Row]:
    """Work out what the turns of each contestant say, and compare them round by round.

    Args:
        records: What each did.
        plan: How it was measured.

    Returns:
        One dict per contestant: `label`, `failure`, `trainable_ratio`, `peak_memory_bytes`,
        `warmup_seconds`; lower quartile, median and upper quartile of `histories_per_second`,
        `items_per_second`, `step_milliseconds`, `epoch_seconds` of the real dataset and, if its
        floor took part, `step_over_floor`; and by base the quartiles of `times_as_fast` and the
        `share_of_memory`.
    """
    bases = find_bases(records, plan)
    return [
        {
            "label": record.label,
            "failure": record.failure,
            "trainable_ratio": trainable_ratio(record),
            "peak_memory_bytes": record.peak_memory_bytes,
            "warmup_seconds": record.warmup_seconds,
            "histories_per_second": quartiles(rates(record, "histories")),
            "items_per_second": quartiles(rates(record, "items")),
            "step_milliseconds": quartiles(1e3 * seconds(record) / plan.batches),
            "epoch_seconds": epoch_seconds(record),
            "step_over_floor": compare(find_floor(record, records), record),
            "times_as_fast": {base.label: compare(record, base) for base in bases},
            "share_of_memory": {base.label: share_of_memory(record, base) for base in bases},
        }
        for record in records
    ]


def trainable_ratio(record: Record) -> float | None:
    """Share of the parameters that are trained, where there are any."""
    return record.trainable / record.parameters if record.parameters else None


def seconds(record: Record) -> np.ndarray:
    """(rounds,) what each turn took."""
    return np.array([turn["seconds"] for turn in record.turns])


def rates(record: Record, unit: str) -> np.ndarray:
    """(rounds,) histories or items per second."""
    return np.array([turn[unit] for turn in record.turns]) / seconds(record)


def quartiles(values: np.ndarray) -> list[float] | None:
    """Lower quartile, median and upper quartile, if there is anything to take them of."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist() if len(values) else None


def epoch_seconds(record: Record) -> list[float] | None:
    """Quartiles of what a pass over the real dataset would take at each turn's rate."""
    return quartiles(record.task.workload.epoch_histories / rates(record, "histories"))


def compare(record: Record | None, other: Record | None) -> list[float] | None:
    """Quartiles of how many times as many histories per second one did, round by round."""
    if record is None or other is None:
        return None
    rounds = min(len(record.turns), len(other.turns))
    return quartiles(rates(record, "histories")[:rounds] / rates(other, "histories")[:rounds])


def share_of_memory(record: Record, base: Record) -> float | None:
    """Peak of one over that of the other; None unless both had to hold equal batches."""
    if record.task.settings.batch_size != base.task.settings.batch_size:
        return None
    if not record.peak_memory_bytes or not base.peak_memory_bytes:
        return None
    return record.peak_memory_bytes / base.peak_memory_bytes


def find_bases(records: list[Record], plan: Plan) -> list[Record]:
    """Find whom the others are compared with: those named, else everyone who is not of ours."""
    ours = {*FLOORS, *FLOORS.values()}
    return [
        record
        for record in records
        if record.turns
        and (record.label in plan.bases if plan.bases else record.task.contestant not in ours)
    ]


def find_floor(record: Record, records: list[Record]) -> Record | None:
    """Find the floor at a contestant's objective, batch size, precision and views.

    There is none under an adapter: a floor has the products of training the whole model.
    """
    keys = (
        "batch_size",
        "precision",
        "num_negatives",
        "adapter",
        "prefix_view_ratio",
        "prefix_ratio",
    )
    for other in records:
        is_floor = other.task.contestant == FLOORS.get(record.task.contestant)
        pairs = ((getattr(each.task.settings, key) for each in (record, other)) for key in keys)
        if is_floor and all(one == another for one, another in pairs):
            return other
    return None


def render_table(summary: list[Row]) -> str:
    """A table for a terminal, and below it who failed, and how."""
    lines, failed = table_lines(summary)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rendered = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*rendered, *failed])


def render_markdown(name: str, results: dict[str, Any]) -> str:
    """A section of the committed benchmarks: what was measured, on what, and the table.

    Args:
        name: Of the results file, without its ending.
        results: Its content.
    """
    plan, workload, shape = results["plan"], results["workload"], results["shape"]
    (heading, *rows), failed = table_lines(results["summary"])
    versions = {}
    for contestant in results["contestants"]:
        versions |= contestant["versions"]
    named = ", ".join(f"{library} {version}" for library, version in sorted(versions.items()))
    lines = [
        f"## {name}",
        "",
        f"Mode `{plan['mode']}`; workload `{workload['name']}` ({workload['num_items']:,} items, "
        f"at most {workload['max_length']} per history); shape `{shape['name']}` (hidden "
        f"{shape['hidden_size']}, {shape['num_layers']} layers, "
        f"{'tied' if shape['tie_word_embeddings'] else 'untied'}); {plan['rounds']} rounds of "
        f"{plan['batches']} batches, {plan['threads']} threads; {results['device']['name']}; "
        f"commit `{results['commit']}`; {named}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)),
        *(f"\n{line}." for line in failed),
    ]
    return "\n".join(lines) + "\n"


def table_lines(summary: list[Row]) -> tuple[list[list[str]], list[str]]:
    """The cells of the table, its heading first; and a line on each contestant that failed."""
    measured = [row for row in summary if row["histories_per_second"]]
    columns = table_columns(summary)
    cells = [[heading for heading, _ in columns]]
    cells += [[render(row) for _, render in columns] for row in measured]
    return cells, [f"{row['label']} failed: {row['failure']}" for row in summary if row["failure"]]


def table_columns(summary: list[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """List headings of the table, and what stands under each for a contestant."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("contestant", lambda row: row["label"]),
        ("step/floor", lambda row: _spread(row["step_over_floor"], 2)),
        ("histories/s", lambda row: f"{row['histories_per_second'][1]:,.1f}"),
        ("items/s", lambda row: f"{row['items_per_second'][1]:,.0f}"),
        ("step ms [quartiles]", lambda row: _spread(row["step_milliseconds"], 1)),
        ("peak MB", lambda row: f"{row['peak_memory_bytes'] / 1e6:,.0f}"),
        ("warm-up s", lambda row: f"{row['warmup_seconds']:.1f}"),
    ]
    # A column of its own only where somebody has an adapter; results of before know of none.
    if any((row.get("trainable_ratio") or 1) < 1 for row in summary):
        columns.append(("trainable", lambda row: _percent(row["trainable_ratio"], digits=2)))
    for base in summary[0]["times_as_fast"]:
        columns += [
            (f"x {base}", lambda row, base=base: _spread(row["times_as_fast"][base], 2)),
            ("of its MB", lambda row, base=base: _percent(row["share_of_memory"][base])),
        ]
    return columns


def _spread(values: list[float] | None, digits: int) -> str:
    if values is None:
        return "–"
    low, median, high = (f"{value:,.{digits}f}" for value in values)
    return f"{median} [{low}–{high}]"


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{share:.{digits}%}"
