"""Train an experiment with one thing changed at a time, and measure what each change is worth.

bert4rec ablate configs/beauty/ablation.yaml --output runs/ablation-beauty

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

    from bert4rec_hf.lab.cards.ablation_card import render_ablation_card
    from bert4rec_hf.lab.studies.ablation import load_ablation, run_ablation

    report_study(parser, options, settings, (load_ablation, run_ablation, render_ablation_card))


if __name__ == "__main__":
    main()
