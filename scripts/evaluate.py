"""Evaluate a model folder and the baselines on a prepared dataset.

accelerate launch scripts/evaluate.py runs/synthetic/model --dataset data/synthetic

The protocol is full ranking, items of the history left out. Any of its settings can be given anew:
--evaluation.exclude_seen false, or --evaluation.candidates sampled for the 100 drawn negatives of
the first papers, whose results are marked as such.
"""

import argparse
import json
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.experiment import share_cores
from bert4rec_hf.hub.card import render_summary
from bert4rec_hf.measurement import evaluate_folder


def main() -> None:
    """Parse, evaluate, report."""
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--dataset", type=Path, required=True, help="a prepared dataset folder")
    parser.add_argument("--output", type=Path, help="a new JSON file for everything measured")
    arguments, settings = parser.parse_known_args()
    accelerator = Accelerator()
    share_cores(accelerator)
    try:
        if arguments.output and arguments.output.exists():
            raise ValueError(f"{arguments.output} exists; choose another --output or remove it")
        if arguments.output and not arguments.output.parent.is_dir():
            raise ValueError(f"the folder of --output {arguments.output} does not exist; make it")
        results = evaluate_folder(arguments.model, arguments.dataset, settings, accelerator)
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if accelerator.is_main_process:
        print(render_summary(results))
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
