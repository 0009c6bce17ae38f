from pathlib import Path

import pytest
import torch
import yaml

from bert4rec_hf.experiment import build_model, load_experiment
from bert4rec_hf.modeling import OBJECTIVES

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "accelerate")


def test_the_list_is_not_empty():
    assert CONFIGS / "synthetic" / "bert4rec.yaml" in EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_builds_its_model_and_tells_how_to_run_it(path, tmp_path):
    arguments = []
    if "base" in yaml.safe_load(path.read_text()):
        base = build_model(load_experiment(path.with_name("base.yaml")), vocab_size=101)
        base.save_pretrained(tmp_path)
        arguments = ["--base.model", str(tmp_path)]
    experiment = load_experiment(path, arguments)
    with torch.device("meta"):
        model = build_model(experiment, vocab_size=101)
    assert model.config.objective in OBJECTIVES
    assert (
        f"accelerate launch scripts/train.py configs/{path.relative_to(CONFIGS)}"
        in path.read_text()
    )
    assert experiment.training.metric.rpartition("@")[2] in map(str, experiment.evaluation.ks)
