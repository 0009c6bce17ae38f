import json
import shutil

import pytest
import yaml

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from tests.hub.conftest import contents

TRAINER = """
import json, sys
import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
folder, steps = sys.argv[1], int(sys.argv[2])
model = BERT4RecForMaskedItemModeling.from_pretrained(folder)
rows = [{"input_ids": torch.tensor([5, 1]), "labels": torch.tensor([-100, 4])}] * 4
settings = TrainingArguments("out", hub_model_id="ann/trained", max_steps=steps, use_cpu=True)
trainer = Trainer(model, settings, train_dataset=rows)
if steps > 0:
    trainer.train()
trainer.push_to_hub()
print(json.dumps("done"))
"""

RECOMMENDER = """
import json, sys
from bert4rec_hf.serving.recommender import Recommender
recommender = Recommender.from_pretrained(sys.argv[1])
recommender.push_to_hub("ann/shop")
again = Recommender.from_pretrained("ann/shop")
print(json.dumps([each.recommend(["heat"], k=3) for each in (recommender, again)]))
"""

TRAIN = """
import contextlib, io, json, sys
from bert4rec_hf.commands.train import main
out = io.StringIO()
try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(sys.argv[1:])
    code = 0
except SystemExit as exit:
    code = exit.code
print(json.dumps([code, out.getvalue()]))
"""


def test_a_trainer_publishes_our_card_with_vocabulary_and_titles(hub, client, folder):
    client(TRAINER, folder, 1)
    files = hub.repositories["models", "ann/trained"].files
    assert contents(folder).keys() <= files.keys()
    for name in ("tokenizer.json", "titles.json", "handler.py"):
        assert files[name] == (folder / name).read_bytes()
    card = files["README.md"].decode()
    assert "# BERT4Rec for 7 items" in card
    assert "information needed" not in card.lower()
    assert str(folder) not in card


def test_a_recommender_publishes_what_it_was_loaded_from(hub, client, folder):
    here, there = client(RECOMMENDER, folder)
    assert here == there
    assert hub.repositories["models", "ann/shop"].files == contents(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    synthetic = SyntheticConfig(num_users=60, num_items=30, mean_length=6.0, max_length=12)
    prepare_dataset("synthetic", None, root / "data", PreparationConfig(synthetic=synthetic))
    sections = {
        "data": {"dataset": str(root / "data"), "mask_ratio": 0.4},
        "model": {"hidden_size": 8, "intermediate_size": 8, "max_history_length": 9},
        "training": {
            "learning_rate": 0.01,
            "batch_size": 16,
            "max_steps": 2,
            "evaluation_steps": 2,
            "checkpoint_steps": 2,
        },
        "evaluation": {"ks": [10], "num_bootstrap_samples": 20},
        "card": {"dataset_name": "generated", "dataset_license": "none"},
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_training_publishes_what_it_measured(hub, client, experiment, tmp_path):
    run = [str(experiment), "--output", str(tmp_path / "run"), "--push-to-hub", "ann/tiny"]
    code, out = client(TRAIN, *run, token="wrong")
    assert code == 2
    assert "got no token for ann/tiny" in out
    assert not (tmp_path / "run").exists()  # it shows before the training
    code, out = client(TRAIN, *run, "--private")
    assert code == 0, out
    assert f"pushed: {hub.url}/ann/tiny/commit/" in out
    repository = hub.repositories["models", "ann/tiny"]
    assert repository.is_private
    pushed = contents(tmp_path / "run" / "model")
    card = pushed.pop("README.md").decode()
    assert repository.files.pop("README.md").decode() == card.replace(
        "path/to/this/folder", "ann/tiny"
    )
    assert repository.files == pushed
    assert json.loads(repository.files["config.json"])["model_type"] == "bert4rec"
    shutil.rmtree(tmp_path / "run")


FINISHED = """
import json, sys
from bert4rec_hf.commands.push import main
from huggingface_hub import ModelCard, hf_hub_download
for folder, name in (("data", "ann/data"), ("run", "ann/tiny")):
    main([sys.argv[1] + "/" + folder, name])
card = ModelCard.load("ann/tiny")
for block in card.text.split("```python\\n")[1:]:
    exec(block.split("```")[0])
print(json.dumps([card.data.datasets, len(recommender.recommend(history, k=10))]))
"""


def test_the_code_of_a_pushed_card_runs_and_its_dataset_has_a_name(hub, client, experiment):
    root = experiment.parent
    code, out = client(TRAIN, experiment, "--output", root / "run")
    assert code == 0, out
    assert client(FINISHED, root) == [["ann/data"], 10]
    files = hub.repositories["models", "ann/tiny"].files
    entries = yaml.safe_load(files[".eval_results/test.yaml"])
    results = json.loads((root / "run" / "results.json").read_text())
    by_metric = {entry["dataset"]["task_id"]: entry["value"] for entry in entries}
    assert by_metric["ndcg@10"] == round(results["test"]["metrics"]["ndcg@10"], 6)
    assert {entry["dataset"]["id"] for entry in entries} == {"ann/data"}
