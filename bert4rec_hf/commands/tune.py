"""Search for the settings of an experiment that are best on validation.

pip install -e ".[tune]"
python scripts/tune.py configs/ml100k/tune.yaml --output runs/tune-ml100k

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.num_trials 50 --training.max_steps 2000. Devices
and precision are chosen by the flags of accelerate launch, one process per worker.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.lab.cards.plots import plot_study
from bert4rec_hf.lab.studies.tuning import load_search, run_search


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, search, report."""
    logging.basicConfig(format="%(message)s")
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a file with the sections study and search")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    options, settings = parser.parse_known_args(arguments)
    try:
        if (processes := PartialState().num_processes) > 1:
            raise ValueError(
                f"a worker is one process, got {processes}; start the script several times instead"
            )
        results = run_search(load_search(options.config, settings), options.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; pip install -e '.[tune]'")
    plot_study(results, options.output / "importances.png")
    for name, value in results["best"]["values"].items():
        print(f"{name:<32}{value!s:<24}importance {results['importances'].get(name, 0):.0%}")
    print(f"validation {results['best']['value']:.4f} in trial {results['best']['number']}")
    print(f"experiment: {options.output / 'best.yaml'}")


if __name__ == "__main__":
    main()
