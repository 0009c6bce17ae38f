"""Evaluate a model or adapter folder and the baselines on a prepared dataset; or compare runs.

bert4rec evaluate runs/synthetic/model --dataset data/synthetic
bert4rec evaluate runs/*/model --dataset data/synthetic --against synthetic-bert4rec
bert4rec evaluate runs/synthetic/model --dataset data/synthetic --lengths 10 20 50

Several folders are grouped by experiment. The table shows mean and standard deviation over seeds,
and the difference from the experiment named by --against, with a paired bootstrap over users and
seeds. --lengths shows how reading more or less of each history changes accuracy and cost.

The protocol is full ranking without the items of the history. Its settings can be overridden:
--evaluation.exclude_seen false, or --evaluation.candidates sampled, which draws 100 negatives as
the first papers did and marks the results as such.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import command_parser

if TYPE_CHECKING:
    from accelerate import Accelerator


def measure(
    options: argparse.Namespace, settings: list[str], accelerator: "Accelerator"
) -> dict[str, Any]:
    """Measure a folder and the baselines, compare several folders, or one at several lengths."""
    from bert4rec_hf.experiment.measurement import evaluate_folder
    from bert4rec_hf.lab.studies.comparison import compare_folders
    from bert4rec_hf.lab.studies.reading_length import compare_lengths

    if options.lengths:
        if len(options.folders) > 1 or options.against:
            raise ValueError("--lengths needs exactly one folder, and excludes --against")
        return compare_lengths(
            options.folders[0], options.dataset, options.lengths, settings, accelerator
        )
    if len(options.folders) == 1 and not options.against:
        output = options.output
        progress = output and output.with_name(f".{output.name}-ranks")
        return evaluate_folder(options.folders[0], options.dataset, settings, accelerator, progress)
    if not options.against:
        raise ValueError("several folders need --against, the reference experiment")
    return compare_folders(
        options.folders,
        options.dataset,
        settings,
        accelerator,
        against=options.against,
        segments=options.segments,
    )


def check_output(path: Path | None) -> None:
    """Refuse an output file that exists, or that cannot be written, before any work is done.

    Raises:
        ValueError: It is such a file.
    """
    if path and path.exists():
        raise ValueError(f"{path} exists; choose another --output or remove it")
    if path and not path.parent.is_dir():
        raise ValueError(f"the folder of --output {path} does not exist; create it")


def render(results: dict[str, Any]) -> str:
    """A table for a terminal."""
    from bert4rec_hf.hub.card import render_summary
    from bert4rec_hf.lab.cards.comparison_card import render_comparison
    from bert4rec_hf.lab.cards.lengths_table import render_lengths

    renders = {"comparison": render_comparison, "lengths": render_lengths}
    return renders.get(results.get("kind"), render_summary)(results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, evaluate, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="model or adapter folders")
    parser.add_argument("--dataset", type=Path, required=True, help="a prepared dataset folder")
    parser.add_argument("--output", type=Path, help="write all measurements to a new JSON file")
    parser.add_argument("--against", help="reference experiment of a comparison")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        metavar="N",
        help="measure when only this many of the newest items are read; several",
    )
    parser.add_argument(
        "--segments",
        type=Path,
        help="csv with the columns user and segment; metrics are also shown by segment",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the whole dataset first, however large it is"
    )
    options, settings = parser.parse_known_args(arguments)

    from accelerate import Accelerator
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    from bert4rec_hf.data.prepared import load_prepared
    from bert4rec_hf.training.launch import share_cores

    disable_progress_bar()  # of transformers: folders load in a moment
    accelerator = Accelerator()
    share_cores(accelerator)
    try:
        check_output(options.output)
        if options.verify:
            load_prepared(options.dataset, verify=True)
        results = measure(options, settings, accelerator)
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if accelerator.is_main_process:
        print(render(results))
        if options.output:
            options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
