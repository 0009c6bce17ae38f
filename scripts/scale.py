"""Train an experiment at several sizes, budgets and seeds, and fit the laws that they follow.

python scripts/scale.py configs/beauty/scaling.yaml --output runs/scaling-beauty

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

from bert4rec_hf.hub.scaling_card import render_scaling_card
from bert4rec_hf.scaling import load_scaling, run_scaling
from bert4rec_hf.study import study_command

if __name__ == "__main__":
    print(study_command(__doc__, load_scaling, run_scaling, render_scaling_card))
