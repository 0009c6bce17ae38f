"""Train an experiment at several sizes, budgets and seeds, and fit scaling laws to the results.

bert4rec scale configs/beauty/scaling.yaml --output runs/scaling-beauty

The same command continues after an interruption; start it several times for several workers. Any
setting can be overridden: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

from collections.abc import Sequence

from .studies import report_study, study_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    parser = study_parser(__spec__.name, __doc__)
    options, settings = parser.parse_known_args(arguments)

    from bert4rec_hf.lab.cards.scaling_card import render_scaling_card
    from bert4rec_hf.lab.studies.scaling import load_scaling, run_scaling

    report_study(parser, options, settings, (load_scaling, run_scaling, render_scaling_card))


if __name__ == "__main__":
    main()
