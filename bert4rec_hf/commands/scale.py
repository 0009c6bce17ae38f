"""Train an experiment at several sizes, budgets and seeds, and fit the laws that they follow.

python scripts/scale.py configs/beauty/scaling.yaml --output runs/scaling-beauty

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

from collections.abc import Sequence

from bert4rec_hf.lab.cards.scaling_card import render_scaling_card
from bert4rec_hf.lab.studies.scaling import load_scaling, run_scaling
from bert4rec_hf.lab.studies.study import study_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    print(study_command(arguments, __doc__, load_scaling, run_scaling, render_scaling_card))


if __name__ == "__main__":
    main()
