"""Search for the settings of an experiment that are best on validation.

bert4rec tune configs/ml100k/tune.yaml --output runs/tune-ml100k

The same command continues after an interruption; start it several times for several workers. Any
setting can be overridden: --study.num_trials 50 --training.max_steps 2000. Devices
and precision are chosen by the flags of accelerate launch, one process per worker.
"""

import sys
from collections.abc import Sequence

from .studies import check_worker, study_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, search, report."""
    parser = study_parser(__spec__.name, __doc__)
    options, settings = parser.parse_known_args(arguments)
    try:
        check_worker()

        from bert4rec_hf.lab.cards.plots import plot_study
        from bert4rec_hf.lab.studies.tuning import load_search, run_search
        from bert4rec_hf.training.interruption import stopping_on_signals

        with stopping_on_signals(lambda: "the same command continues it"):
            results = run_search(load_search(options.config, settings), options.output)
        plot_study(results, options.output / "importances.png")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; pip install 'bert4rec_hf[tune]'")
    for name, value in results["best"]["values"].items():
        print(f"{name:<32}{value!s:<24}importance {results['importances'].get(name, 0):.0%}")
    print(f"validation {results['best']['value']:.4f} in trial {results['best']['number']}")
    print(f"experiment: {options.output / 'best.yaml'}")


if __name__ == "__main__":
    main()
