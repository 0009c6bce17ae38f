import re
from pathlib import Path

import pytest
import torch
import yaml

from bert4rec_hf.experiment.build import build_config, build_model
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.lab.studies.ablation import load_ablation
from bert4rec_hf.lab.studies.scaling import load_scaling
from bert4rec_hf.lab.studies.tuning import load_search
from bert4rec_hf.modeling import OBJECTIVES

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "accelerate")
SEARCHES = [path for path in FILES if path.stem.startswith("tune")]
SCALINGS = [path for path in FILES if path.stem.startswith("scaling")]
ABLATIONS = [path for path in FILES if path.stem.startswith("ablation")]
EXPERIMENTS = [path for path in FILES if path not in SEARCHES + SCALINGS + ABLATIONS]


def test_the_list_is_not_empty():
    assert CONFIGS / "synthetic" / "bert4rec.yaml" in EXPERIMENTS
    assert CONFIGS / "ml100k" / "tune.yaml" in SEARCHES
    assert CONFIGS / "beauty" / "scaling.yaml" in SCALINGS
    assert CONFIGS / "beauty" / "ablation.yaml" in ABLATIONS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_builds_its_model_and_tells_how_to_run_it(path, tmp_path):
    arguments = []
    if "base" in yaml.safe_load(path.read_text()):
        name = f"{path.stem.removesuffix('_ilora')}.yaml" if "_ilora" in path.stem else "base.yaml"
        build_config(load_experiment(path.with_name(name)), 101).save_pretrained(tmp_path)
        arguments = ["--base.model", str(tmp_path)]
    experiment = load_experiment(path, arguments)
    with torch.device("meta"):
        model = build_model(experiment, vocab_size=101)
    assert model.config.objective in OBJECTIVES
    command = (
        rf"# accelerate launch .*scripts/train.py configs/{path.relative_to(CONFIGS)} --output"
    )
    assert re.search(command, path.read_text())
    assert experiment.training.metric.rpartition("@")[2] in map(str, experiment.evaluation.ks)


@pytest.mark.parametrize(
    ("name", "num_items", "millions"),
    [
        ("ml20m/bert4rec_5m", 26_744, 5),
        *(
            (f"electronics/bert4rec_{size}m{family}", 160_052, size)
            for size in (85, 130, 430)
            for family in ("", "_untied")
        ),
    ],
)
def test_a_model_has_the_parameters_that_its_name_says(name, num_items, millions):
    experiment = load_experiment(CONFIGS / f"{name}.yaml")
    with torch.device("meta"):
        model = build_model(experiment, vocab_size=num_items + 2)
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.02)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied != name.endswith("_untied")


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_search_is_one_of_settings_that_the_experiment_has(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert load_search(path).ranges
    command = f"bert4rec tune configs/{path.relative_to(CONFIGS)} --output"
    assert command in path.read_text()


@pytest.mark.parametrize("path", SCALINGS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_study_of_scale_has_five_sizes_over_two_orders_of_magnitude(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    study = load_scaling(path)
    encoders = []
    for run in study.runs:
        with torch.device("meta"):
            encoders.append(build_model(study.build(run), vocab_size=101).model.layers)
    sizes = {sum(weight.numel() for weight in layers.parameters()) for layers in encoders}
    assert len(sizes) >= 5
    assert max(sizes) > 100 * min(sizes)
    assert len(study.description["study"]["seeds"]) >= 2
    command = f"bert4rec scale configs/{path.relative_to(CONFIGS)} --output"
    assert command in path.read_text()


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_an_ablation_changes_settings_that_the_experiment_has(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    study = load_ablation(path)
    recipe, *changed = [study.build(run) for run in study.runs]
    assert changed
    assert all(experiment != recipe for experiment in changed)
    command = f"bert4rec ablate configs/{path.relative_to(CONFIGS)} --output"
    assert command in path.read_text()
