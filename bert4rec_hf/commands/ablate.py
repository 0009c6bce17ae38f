"""Train an experiment with one thing changed at a time, and tell what each is worth.

python scripts/ablate.py configs/beauty/ablation.yaml --output runs/ablation-beauty

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

from collections.abc import Sequence

from bert4rec_hf.lab.cards.ablation_card import render_ablation_card
from bert4rec_hf.lab.studies.ablation import load_ablation, run_ablation
from bert4rec_hf.lab.studies.study import study_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    print(study_command(arguments, __doc__, load_ablation, run_ablation, render_ablation_card))


if __name__ == "__main__":
    main()
