import json
import shutil

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from bert4rec_hf.hub.model_folder import load_weights
from bert4rec_hf.hub.push import find_repository
from tests.hub.test_pull import RECOMMEND
from tests.hub.test_push import PUSH


@pytest.fixture
def adapter(folder, tmp_path):
    """A base model and a LoRA adapter on it, in folders beside one another."""
    base = shutil.copytree(folder, tmp_path / "base")
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(load_weights(base), settings)
    path = tmp_path / "adapter"
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "titles.json"):
        shutil.copyfile(base / name, path / name)
    (path / "README.md").write_text(f"---\nlibrary_name: peft\n---\nOn the frozen `{base}`.\n")
    return base, path


def test_an_adapter_names_the_repository_of_its_base(hub, client, adapter):
    base, path = adapter
    before = (path / "adapter_config.json").read_text()
    pushes = [[str(path), "ann/adapter"], [str(base), "ann/base"], [str(path), "ann/adapter"]]
    (refused, out), *done = client(PUSH, json.dumps(pushes))
    assert refused == 2
    assert (
        f"the base model of this adapter is the local folder {base}, which others cannot load"
        in out
    )
    assert f"bert4rec push {base} user/name" in out
    assert [code for code, _ in done] == [0, 0]
    files = hub.repositories["models", "ann/adapter"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "ann/base"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("ann/base", "adapter")
    assert "On the frozen `ann/base`." in card.text
    assert str(base).encode() not in b"".join(files.values())
    assert (path / "adapter_config.json").read_text() == before
    here = client(RECOMMEND, json.dumps([str(path), None, None]))
    assert client(RECOMMEND, json.dumps(["ann/adapter", None, None])) == here


def test_a_base_that_changed_since_it_was_pushed_is_refused(adapter):
    base, _ = adapter
    record = {"repository": "ann/base", "weights": "of others"}
    (base / ".hub.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{base} has changed since it was pushed to ann/base"):
        find_repository(str(base))
