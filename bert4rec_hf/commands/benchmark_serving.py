"""Measure what recommending costs with a generated model: all users, one user, memory, loading.

bert4rec benchmark_serving --measure latency batch --shape cpu --output serving.json

latency: one user, compared with the bare encoder, one matrix product and a top-k. batch: users per
second, compared with ranking one target for each of them. memory: peak of bert4rec recommend for
several numbers of users. loading: reading a vocabulary of a million items.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .parser import command_parser

MEASURES = ("latency", "batch", "memory", "loading")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    add(
        "--workload",
        default="electronics",
        help="whose histories to draw, see benchmark (default: %(default)s)",
    )
    add("--shape", default="cpu", help="size of the model, see benchmark (default: %(default)s)")
    add("--items", type=int, help="size of the catalog (default: that of the workload)")
    add("--users", type=int, default=8_192, help="for the measure batch")
    add(
        "--memory-users",
        type=int,
        nargs="+",
        default=[10_000, 40_000],
        help="for the measure memory",
    )
    add("--rounds", type=int, default=5)
    add("--output", type=Path, help="write all measurements to a new JSON file")
    options = parser.parse_args(arguments)
    if options.output and options.output.exists():
        parser.error(f"{options.output} exists; choose another --output or remove it")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, report."""
    options = parse_options(arguments)
    from accelerate import Accelerator

    from bert4rec_hf.evaluation.provenance import provenance
    from bert4rec_hf.lab.benchmark import serving
    from bert4rec_hf.lab.benchmark.task import Settings, Task
    from bert4rec_hf.lab.benchmark.workloads import SHAPES, WORKLOADS

    workload = WORKLOADS[options.workload]
    if options.items:
        workload = replace(workload, num_items=options.items)
    settings = Settings(batch_size=1)  # nothing is trained
    task = Task(
        contestant="full_softmax",
        workload=workload,
        shape=SHAPES[options.shape],
        settings=settings,
    )
    measures = {
        "latency": lambda: serving.measure_latency(task, options.rounds),
        "batch": lambda: serving.measure_batch(task, options.users, options.rounds),
        "memory": lambda: serving.measure_memory(task, options.memory_users),
        "loading": lambda: serving.measure_loading(1_000_000, options.rounds),
    }
    results: dict[str, Any] = {
        "kind": "serving",
        "workload": asdict(workload),
        "shape": asdict(task.shape),
        **{name: measures[name]() for name in options.measure},
        **provenance(Accelerator(cpu=True)),
    }
    text = json.dumps(results, indent=2) + "\n"
    print(json.dumps({name: results[name] for name in options.measure}, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
