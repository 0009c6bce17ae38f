"""Train an experiment at several sizes, budgets and seeds, and fit the laws that they follow.

python scripts/scale.py configs/beauty/scaling.yaml --output runs/scaling-beauty

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

import argparse
import logging
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.hub.scaling_card import render_scaling_card
from bert4rec_hf.scaling import load_scaling, run_scaling


def main() -> None:
    """Parse, train, report."""
    logging.basicConfig(format="%(message)s")
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a file with the sections study and sizes")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    arguments, settings = parser.parse_known_args()
    try:
        if (processes := PartialState().num_processes) > 1:
            raise ValueError(
                f"a worker is one process, got {processes}; start the script several times instead"
            )
        results = run_scaling(load_scaling(arguments.config, settings), arguments.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(render_scaling_card(results["name"], results))
    print(f"results: {arguments.output / 'scaling.json'}")


if __name__ == "__main__":
    main()
