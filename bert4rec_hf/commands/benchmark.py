"""Measure what a training step costs, compared with transformers' BertForMaskedLM and others.

bert4rec benchmark --batch-size 64 --contestants full_softmax floor bert_for_masked_lm

Contestants take turns, each in a process of its own. The table shows medians and quartiles over the
rounds, and the ratio to each base within the same round. A contestant may have its own settings:
full_softmax:precision=bf16,compile=inductor, or full_softmax:adapter=ilora,r=16, which trains an
adapter on the frozen model. With --mode evaluate, the last item of each history is ranked among the
catalog; with --mode collate, batches are made but not trained on.

bert4rec benchmark --sweep measured --seconds 600

measures all tables of the report on the device at hand: sizes 85M, 130M and 430M, precision,
compilation, LoRA and iLoRA, larger batches, evaluation and batch scoring. What does not fit into
the time is left out and named.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bert4rec_hf.lab.benchmark.workloads import MODES, SHAPES, WORKLOADS

from .parser import command_parser

DEFAULT_CONTESTANTS = ["full_softmax", "sampled_softmax", "floor", "sampled_floor"]


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Read the command line."""
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, default="electronics")
    add("--shape", choices=SHAPES, default="cpu")
    add("--mode", choices=MODES, default="train")
    add(
        "--contestants",
        nargs="+",
        default=DEFAULT_CONTESTANTS,
        metavar="NAME[:SETTING=VALUE,...]",
        help="what to measure; an unknown name lists the known ones",
    )
    add(
        "--bases",
        nargs="+",
        default=[],
        help="what to compare with (default: all contestants that are not ours)",
    )
    add(
        "--batch-size",
        type=int,
        default=256,
        help="for contestants that set none (default: %(default)s)",
    )
    add("--rounds", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    add("--steps", type=int, default=1, help="batches per turn (default: %(default)s)")
    add(
        "--warmup", type=int, default=1, help="batches before the first turn (default: %(default)s)"
    )
    add("--threads", type=int, help="threads of each contestant (default: all cores)")
    add(
        "--max-memory-gb",
        type=float,
        help="most memory that one contestant may allocate on the CPU",
    )
    add(
        "--peer-python",
        default=sys.executable,
        help="Python interpreter with RecBole and other libraries installed",
    )
    add(
        "--profile",
        metavar="FOLDER",
        help="write tables and traces of the training steps to this folder",
    )
    add("--output", type=Path, help="write all measurements to a new JSON file")
    add("--sweep", type=Path, metavar="FOLDER", help="measure all tables into this new folder")
    add("--seconds", type=float, default=600, help="for a sweep (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, report."""
    parser = command_parser(__spec__.name, __doc__)
    options = parse_options(parser, arguments)
    if options.sweep:
        sweep(parser, options)
        return

    import torch
    from accelerate import Accelerator

    from bert4rec_hf.lab.benchmark.contestants import parse_contestants
    from bert4rec_hf.lab.benchmark.report import collect_results, render_table
    from bert4rec_hf.lab.benchmark.tournament import Plan, run_tournament

    try:
        if options.output and options.output.exists():
            raise ValueError(f"{options.output} exists; choose another --output or remove it")
        if options.output and not options.output.parent.is_dir():
            raise ValueError(f"the folder of --output {options.output} does not exist; create it")
        plan = Plan(
            mode=options.mode,
            bases=tuple(options.bases),
            rounds=options.rounds,
            batches=options.steps,
            warmup_batches=options.warmup,
            threads=options.threads or torch.get_num_threads(),
            peer_python=options.peer_python,
            max_memory_gb=options.max_memory_gb,
            profile_folder=options.profile,
        )
        tasks = parse_contestants(
            options.contestants,
            workload=WORKLOADS[options.workload],
            shape=SHAPES[options.shape],
            batch_size=options.batch_size,
        )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    results = collect_results(run_tournament(tasks, plan), plan, Accelerator())
    print(render_table(results["summary"]))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def sweep(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Measure all tables, print each, and name what was left out."""
    import torch

    from bert4rec_hf.lab.benchmark.report import render_table
    from bert4rec_hf.lab.benchmark.sweep import Sweep, run_sweep

    try:
        sweep = Sweep(
            workload=WORKLOADS[options.workload],
            seconds=options.seconds,
            batch_size=options.batch_size,
            rounds=options.rounds,
            threads=options.threads or torch.get_num_threads(),
        )
        options.sweep.mkdir(parents=True)
    except FileExistsError:
        parser.exit(2, f"error: {options.sweep} exists; choose another --sweep or remove it\n")
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for table, results in run_sweep(sweep, options.sweep):
        print(f"\n{table.name}")
        if results and "summary" in results:
            print(render_table(results["summary"]))
        elif results:
            print(json.dumps(results["batch"], indent=2))
    left_out = json.loads((options.sweep / "sweep.json").read_text(encoding="utf-8"))["left_out"]
    print(*(f"left out: {name}: {reason}" for name, reason in left_out.items()), sep="\n")


if __name__ == "__main__":
    main()
