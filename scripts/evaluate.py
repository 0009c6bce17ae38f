"""Evaluate a model or adapter folder and the baselines on a prepared dataset; or compare runs.

accelerate launch scripts/evaluate.py runs/synthetic/model --dataset data/synthetic
python scripts/evaluate.py runs/*/model --dataset data/synthetic --against synthetic-bert4rec
python scripts/evaluate.py runs/synthetic/model --dataset data/synthetic --lengths 10 20 50

Several folders are put together by experiment: mean and standard deviation over the seeds, and what
each has more than the one named by --against, with a paired bootstrap over users and seeds.
--lengths tells what reading more or less of each history is worth, and what it costs.

The protocol is full ranking, items of the history left out. Any of its settings can be given anew:
--evaluation.exclude_seen false, or --evaluation.candidates sampled for the 100 drawn negatives of
the first papers, whose results are marked as such.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.comparison import compare_folders
from bert4rec_hf.hub.card import render_summary
from bert4rec_hf.hub.comparison_card import render_comparison
from bert4rec_hf.hub.lengths_table import render_lengths
from bert4rec_hf.measurement import evaluate_folder
from bert4rec_hf.reading_length import compare_lengths
from bert4rec_hf.training.launch import share_cores


def measure(
    arguments: argparse.Namespace, settings: list[str], accelerator: Accelerator
) -> dict[str, Any]:
    """One folder beside the baselines, or several beside one another, or one at several lengths."""
    if arguments.lengths:
        if len(arguments.folders) > 1 or arguments.against:
            raise ValueError("--lengths is for one folder, and without --against")
        return compare_lengths(
            arguments.folders[0], arguments.dataset, arguments.lengths, settings, accelerator
        )
    if len(arguments.folders) == 1 and not arguments.against:
        return evaluate_folder(arguments.folders[0], arguments.dataset, settings, accelerator)
    if not arguments.against:
        raise ValueError("several folders need --against, the experiment to test the others with")
    return compare_folders(
        arguments.folders,
        arguments.dataset,
        settings,
        accelerator,
        against=arguments.against,
        segments=arguments.segments,
    )


def main() -> None:
    """Parse, evaluate, report."""
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders of models or adapters")
    parser.add_argument("--dataset", type=Path, required=True, help="a prepared dataset folder")
    parser.add_argument("--output", type=Path, help="a new JSON file for everything measured")
    parser.add_argument(
        "--against", help="experiment that those of several folders are tested with"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", metavar="N", help="read so many of the newest items"
    )
    parser.add_argument("--segments", type=Path, help="csv of user and segment, to report apart")
    arguments, settings = parser.parse_known_args()
    accelerator = Accelerator()
    share_cores(accelerator)
    try:
        if arguments.output and arguments.output.exists():
            raise ValueError(f"{arguments.output} exists; choose another --output or remove it")
        if arguments.output and not arguments.output.parent.is_dir():
            raise ValueError(f"the folder of --output {arguments.output} does not exist; make it")
        results = measure(arguments, settings, accelerator)
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if accelerator.is_main_process:
        renders = {"comparison": render_comparison, "lengths": render_lengths}
        print(renders.get(results.get("kind"), render_summary)(results))
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
