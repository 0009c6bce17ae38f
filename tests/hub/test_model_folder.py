from pathlib import Path

import torch
from peft import AutoPeftModel, get_peft_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bert4rec_hf import modeling
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.hub.model_folder import load_weights, save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.tuners import ILoraConfig


def make_model():
    config = BERT4RecConfig(vocab_size=5, hidden_size=12, intermediate_size=20)
    return BERT4RecForMaskedItemModeling(config)


def test_a_model_folder_holds_weights_code_vocabulary_and_titles(tmp_path):
    dataset, folder = tmp_path / "dataset", tmp_path / "model"
    build_vocabulary(["alien", "brazil", "dune"]).save_pretrained(dataset)
    (dataset / "titles.json").write_text('{"dune": "Dune (1984)"}')
    save_model_folder(make_model(), dataset, folder)
    code = {path.name for path in Path(modeling.__file__).parent.glob("*.py")}
    code -= {"__init__.py", "trainer_card.py"}
    assert {path.name for path in folder.iterdir()} == code | {
        "config.json",
        "model.safetensors",
        "titles.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("dune") == 4


def test_a_better_model_takes_the_place_of_the_one_before(tmp_path):
    dataset, folder = tmp_path / "dataset", tmp_path / "model"
    build_vocabulary(["alien", "brazil", "dune"]).save_pretrained(dataset)
    save_model_folder(make_model(), dataset, folder)
    (folder / "README.md").write_text("about the one before")
    better = make_model()
    save_model_folder(better, dataset, folder)
    loaded = AutoModelForMaskedLM.from_pretrained(folder)
    torch.testing.assert_close(loaded.state_dict(), better.state_dict(), rtol=0, atol=0)
    assert not (folder / "README.md").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "model"]


def test_an_adapter_folder_is_loaded_by_the_auto_class_of_peft(tmp_path):
    dataset, base = tmp_path / "dataset", tmp_path / "base"
    build_vocabulary(["alien", "brazil", "dune"]).save_pretrained(dataset)
    save_model_folder(make_model(), dataset, base)
    settings = ILoraConfig(r=4, num_experts=2, init_weights=False)
    adapted = get_peft_model(load_weights(base), settings).eval()
    save_model_folder(adapted, dataset, tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.tensor([[3, 2, 1]])
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits, rtol=0, atol=0)
