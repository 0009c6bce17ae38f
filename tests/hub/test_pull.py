import json
import time

import pytest

from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.serving.recommender import Recommender
from tests.hub.conftest import contents

RECOMMEND = """
import json, sys
from bert4rec_hf.serving.recommender import Recommender
name, revision, token = json.loads(sys.argv[1])
recommender = Recommender.from_pretrained(name, revision=revision, token=token)
print(json.dumps(recommender.recommend(["heat", "brazil"], k=3)))
"""

COMMAND = """
import contextlib, io, json, sys
from bert4rec_hf.commands.recommend import main
answers = []
for name in sys.argv[1:]:
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main([name, "heat"])
        except SystemExit as exit:
            code = exit.code
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""


def test_a_recommender_is_loaded_by_name_revision_and_token(hub, client, folder):
    repository = hub.add("models", "bob/shop", {}, is_private=True)
    repository.branches["v2"] = [repository.commit("main", "model", contents(folder))]
    repository.commit("main", "removed", {"README.md": b"moved to v2"})
    expected = Recommender.from_pretrained(folder).recommend(["heat", "brazil"], k=3)
    question = json.dumps(["bob/shop", "v2", "token-of-bob"])
    assert client(RECOMMEND, question) == [list(each) for each in expected]
    assert client(RECOMMEND, json.dumps(["bob/shop@v2", None, "token-of-bob"])) == [
        list(each) for each in expected
    ]


def test_what_cannot_be_pulled_is_one_line_each(hub, client, folder):
    hub.add("models", "bob/secret", contents(folder), is_private=True)
    hub.add("models", "bob/gated", contents(folder), is_gated=True)
    hub.add("models", "ann/shop", contents(folder))
    names = ("bob/secret", "bob/gated", "bob/missing", "ann/shop@v9", "ann/shop")
    secret, gated, missing, revision, (code, found) = client(COMMAND, *names)
    assert code == 0
    assert len(found.splitlines()) == 6
    for (code, out), message in (
        (secret, f"{hub.url} has no bob/secret that you may read"),
        (gated, f"bob/gated is gated: ask for access at {hub.url}/bob/gated"),
        (missing, f"{hub.url} has no bob/missing that you may read"),
        (revision, "ann/shop has no revision 'v9'"),
    ):
        assert code == 2
        assert message in out
        assert out.count("\n") == 1


@pytest.mark.parametrize("name", ["runs/shp", "/nowhere/model", "shop", "./shop", "a/b/c"])
def test_a_folder_that_does_not_exist_is_an_error_at_once(name, tmp_path, monkeypatch):
    (tmp_path / "runs" / "shop").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}; name one, or a model"):
        fetch_folder(name)
    assert time.perf_counter() - start < 0.5


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder and has no revision, got 'v2'"):
        fetch_folder(tmp_path, revision="v2")


TWO_MODELS = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM
ids = torch.tensor([[8, 2, 1]])
answers = {}
for name in ("ann/plain", "ann/doubled"):
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True).eval()
    with torch.no_grad():
        answers[name] = model(ids).logits[0, -1, 2:].tolist()
    model.save_pretrained(name.replace("/", "-"))
    code = open(name.replace("/", "-") + "/modeling_bert4rec.py").read()
    answers[name + " is saved doubled"] = "2 * nn.functional.linear" in code
try:
    AutoModelForMaskedLM.from_pretrained("ann/plain", trust_remote_code=False)
except ValueError as error:
    answers["refused"] = str(error)
print(json.dumps(answers))
"""


def test_two_models_in_one_process_run_and_save_their_own_code(hub, bare_client, folder):
    files = contents(folder)
    hub.add("models", "ann/plain", files)
    code = files["modeling_bert4rec.py"].decode()
    changed = code.replace("logits = nn.functional.linear", "logits = 2 * nn.functional.linear")
    assert changed != code
    hub.add("models", "ann/doubled", files | {"modeling_bert4rec.py": changed.encode()})
    answers = bare_client(TWO_MODELS)
    assert answers["ann/doubled"] == pytest.approx([2 * x for x in answers["ann/plain"]])
    assert answers["ann/doubled is saved doubled"]
    assert not answers["ann/plain is saved doubled"]
    assert "trust_remote_code=True" in answers["refused"]


def test_a_hub_that_cannot_be_reached_is_an_error_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # which has no folder data, as a checkout in use does
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    start = time.perf_counter()
    with pytest.raises(OSError, match="no folder data/shop, and .*127.0.0.1:9 cannot be reached"):
        fetch_folder("data/shop", kind="dataset")
    assert time.perf_counter() - start < 5


ADAPTERS = """
import json
from transformers import AutoModelForMaskedLM
from peft import LoraConfig, VeraConfig, get_peft_model
names = []
for kind in (LoraConfig, VeraConfig):
    model = AutoModelForMaskedLM.from_pretrained("ann/plain", trust_remote_code=True)
    adapted = get_peft_model(model, kind())
    names.append(sorted({name.rpartition(".")[2] for name in adapted.targeted_module_names}))
print(json.dumps(names))
"""


def test_an_adapter_without_targets_sits_in_attention_of_remote_code(hub, bare_client, folder):
    hub.add("models", "ann/plain", contents(folder))
    assert bare_client(ADAPTERS) == [["q_proj", "v_proj"]] * 2
