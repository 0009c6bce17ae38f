"""Train an experiment with one thing changed at a time, and tell what each is worth.

python scripts/ablate.py configs/beauty/ablation.yaml --output runs/ablation-beauty

The same command goes on after an interruption; started several times side by side, it has several
workers. Any setting can be given anew: --study.seeds '[0]' --training.batch_size 64. Devices and
precision are chosen by the flags of accelerate launch, one process per worker.
"""

from bert4rec_hf.ablation import load_ablation, run_ablation
from bert4rec_hf.hub.ablation_card import render_ablation_card
from bert4rec_hf.study import study_command

if __name__ == "__main__":
    print(study_command(__doc__, load_ablation, run_ablation, render_ablation_card))
