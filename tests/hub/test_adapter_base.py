import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.hub.adapter_base import BASE_FILE
from bert4rec_hf.hub.model_folder import load_model, save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender


@pytest.fixture
def folders(tmp_path):
    """A base model and an adapter that was learned on it."""
    torch.manual_seed(0)
    build_vocabulary(["alien", "brazil", "dune"]).save_pretrained(tmp_path / "dataset")
    config = BERT4RecConfig(vocab_size=5, hidden_size=12, intermediate_size=20)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_model_folder(BERT4RecForMaskedItemModeling(config), tmp_path / "dataset", base)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    save_model_folder(get_peft_model(load_model(base), lora), tmp_path / "dataset", adapter)
    return base, adapter


def train_anew(base):
    weights = {name: weight + 0.3 for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def test_an_adapter_loads_on_its_base_wherever_that_is(folders, tmp_path):
    base, adapter = folders
    here = Recommender.from_pretrained(adapter).recommend(["dune"], k=2)
    moved = base.rename(tmp_path / "elsewhere")
    assert Recommender.from_pretrained(moved, adapter=adapter).recommend(["dune"], k=2) == here


def test_an_adapter_is_not_put_on_a_base_that_was_trained_anew(folders):
    base, adapter = folders
    known = json.loads((adapter / BASE_FILE).read_text())["weights_fingerprint"]
    train_anew(base)
    message = (
        f"with the weights_fingerprint {known}, but .*base has the weights_fingerprint (?!{known})"
    )
    with pytest.raises(ValueError, match=message):
        load_model(adapter)
    with pytest.raises(ValueError, match=message):
        Recommender.from_pretrained(base, adapter=adapter)


def test_an_adapter_is_not_put_on_a_base_of_another_catalog(folders, tmp_path):
    base, adapter = folders
    config = json.loads((base / "config.json").read_text())
    config.pop("vocabulary_fingerprint", None)
    (base / "config.json").write_text(json.dumps(config))
    build_vocabulary(["alien", "dune", "brazil"]).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "tokenizer.json", base / "tokenizer.json")
    known = json.loads((adapter / BASE_FILE).read_text())["vocabulary_fingerprint"]
    with pytest.raises(ValueError, match=f"with the vocabulary_fingerprint {known}, but"):
        load_model(adapter)


def test_an_older_adapter_that_says_nothing_of_its_base_loads(folders):
    base, adapter = folders
    (adapter / BASE_FILE).unlink()
    train_anew(base)
    assert load_model(adapter) is not None
