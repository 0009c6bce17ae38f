import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender
from tests.hub.conftest import CARD, contents

PUSH = """
import contextlib, io, json, sys
from bert4rec_hf.commands.push import main
answers = []
for arguments in json.loads(sys.argv[1]):
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(arguments)
        except SystemExit as exit:
            code = exit.code
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""

LOAD_ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
name, revision = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(name, revision=revision, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=True)
ids = tokenizer(["heat", "alien", "[MASK]"], is_split_into_words=True).input_ids
with torch.no_grad():
    logits = model(torch.tensor([[8, 2, 1]])).logits[0, -1, 2:]
try:
    tokenizer("zardoz")
except KeyError as error:
    message = error.args[0]
recommend = pipeline("next-item-recommendation", name, revision=revision, trust_remote_code=True)
items = recommend(["heat"], candidates=["alien", "fargo"])
model.save_pretrained("again")
tokenizer.save_pretrained("again")
recommend = pipeline("next-item-recommendation", "./again", trust_remote_code=True)
again = recommend(["heat"], candidates=["alien", "fargo"])
print(json.dumps([ids[:2], logits.tolist(), message, items, again]))
"""


@pytest.fixture
def shop(folder, tmp_path):
    """A copy, as a push leaves a record in the folder."""
    return shutil.copytree(folder, tmp_path / "runs" / "shop")


def test_a_pushed_folder_is_pulled_bit_for_bit_without_the_package(hub, client, bare_client, shop):
    push = [str(shop), "ann/shop", "--private"]
    (first, _), (second, _) = client(PUSH, json.dumps([push, push]))
    assert (first, second) == (0, 0)
    repository = hub.repositories["models", "ann/shop"]
    assert repository.is_private
    assert repository.files == contents(shop)
    titles = [commit.title for commit in repository.branches["main"]]
    assert titles == ["initial commit", "Upload model"]  # the second push made none
    ids, logits, message, items, again = bare_client(LOAD_ELSEWHERE, "ann/shop", "main")
    assert ids == [8, 2]
    assert "the first is 'zardoz'" in message
    model = BERT4RecForMaskedItemModeling.from_pretrained(shop).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[8, 2, 1]])).logits[0, -1, 2:]
    np.testing.assert_array_equal(np.array(logits, dtype=np.float32), expected.numpy())
    recommended = Recommender.from_pretrained(shop).recommend(["heat"], 2, candidates=SOME)
    assert [tuple(each.get(key) for key in ("item", "score", "title")) for each in items] == [
        (each.item, pytest.approx(each.score, abs=1e-6), each.title) for each in recommended
    ]
    assert [each["item"] for each in again] == [each["item"] for each in items]


SOME = ["alien", "fargo"]


def test_a_branch_is_made_and_what_misleads_is_removed(hub, client, shop):
    hub.add("models", "ann/shop", {"titles.json": b"{}", "notes.txt": b"kept"})
    (shop / "titles.json").unlink()
    ((code, _),) = client(PUSH, json.dumps([[str(shop), "ann/shop", "--revision", "v2"]]))
    assert code == 0
    repository = hub.repositories["models", "ann/shop"]
    assert repository.files == {"titles.json": b"{}", "notes.txt": b"kept"}
    assert repository.branches["v2"][-1].files == contents(shop) | {"notes.txt": b"kept"}


def test_a_push_that_broke_off_is_reported_and_goes_on(hub, client, shop):
    hub.broken_uploads = 99
    push = [str(shop), "ann/shop"]
    # Retries wait for seconds; a second client needs none.
    ((code, out),) = client(NO_WAITING + PUSH, json.dumps([push]))
    assert code == 2
    assert out.startswith("error: ann/shop: the connection to http://127.0.0.1:")
    assert "run it again, what was transferred already is not transferred again" in out
    assert out.count("\n") == 1
    assert hub.repositories["models", "ann/shop"].files == {}  # nothing half-published
    hub.broken_uploads = 0
    weights = (shop / "model.safetensors").read_bytes()
    hub.stored[hashlib.sha256(weights).hexdigest()] = weights
    ((code, _),) = client(PUSH, json.dumps([push]))
    assert code == 0
    assert hub.repositories["models", "ann/shop"].files == contents(shop)
    uploads = [each for each in hub.requests if each.startswith("PUT /storage")]
    assert len(set(uploads)) == 1


NO_WAITING = "import huggingface_hub.utils._http as http; http.time.sleep = lambda seconds: None"


def test_what_a_hub_refuses_is_one_line_each(hub, client, shop, tmp_path):
    hub.add("models", "bob/secret", {}, is_private=True)
    hub.add("models", "bob/open", {})
    pushes = [[str(shop), name] for name in ("bob/secret", "bob/open", "bob/new")]
    pushes += [[str(tmp_path / "nothing"), "ann/shop"]]
    answers = client(PUSH, json.dumps(pushes))
    assert [code for code, _ in answers] == [2, 2, 2, 2]
    for (_, out), name in zip(answers[1:3], ("bob/open", "bob/new"), strict=True):
        assert f"does not let the owner of this token write to {name}" in out
    assert f"there is no folder {tmp_path / 'nothing'}" in answers[3][1]
    assert all(out.count("\n") == 1 for _, out in answers)
    ((code, out),) = client(PUSH, json.dumps([[str(shop), "ann/shop"]]), token="wrong")
    assert code == 2
    assert f"error: {hub.url} got no token for ann/shop" in out


HABIT = """
import json, sys
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
from transformers import AutoTokenizer
folder, change = sys.argv[1:]
model = BERT4RecForMaskedItemModeling.from_pretrained(folder)
if change == "change":
    model.lm_head.bias.data[3] += 1
model.push_to_hub("ann/habit")
AutoTokenizer.from_pretrained(folder).push_to_hub("ann/habit")
model.save_pretrained(folder + "-again", push_to_hub=True, repo_id="ann/habit")
print(json.dumps("done"))
"""


def test_a_model_that_is_pushed_from_python_brings_everything(hub, client, shop):
    client(HABIT, shop, "keep")
    repository = hub.repositories["models", "ann/habit"]
    assert repository.files == contents(shop)
    assert repository.files["README.md"].decode() == CARD


def test_a_changed_model_does_not_bring_the_figures_of_another(hub, client, shop):
    hub.add("models", "ann/habit", {"README.md": b"---\n---\n\n[More Information Needed]\n"})
    client(HABIT, shop, "change")
    files = hub.repositories["models", "ann/habit"].files
    assert files.keys() == contents(shop).keys()
    card = files["README.md"].decode()
    assert "More Information Needed" not in card
    assert "Measured with these weights" not in card
    assert "# BERT4Rec for 7 items" in card
    assert "sequential-recommendation" in card
