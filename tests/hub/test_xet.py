import hashlib
import json
import shutil

import pytest

from tests.hub.client import Client
from tests.hub.conftest import contents
from tests.hub.test_pull import RECOMMEND
from tests.hub.test_push import PUSH


@pytest.mark.slow
def test_a_folder_is_pushed_by_xet(hub, folder, tmp_path):
    hub.xet_folder = tmp_path / "xet"
    hub.xet_folder.mkdir()
    shop = shutil.copytree(folder, tmp_path / "shop")
    weights = (shop / "model.safetensors").read_bytes()
    # The server cannot read Xet's own store; it is given what it would find there.
    hub.stored[hashlib.sha256(weights).hexdigest()] = weights
    environment = hub.environment(tmp_path / "home") | {"HF_HUB_DISABLE_XET": "0"}
    client = Client(environment, tmp_path / "work")
    push = [str(shop), "ann/shop"]
    (first, out), (second, _) = client(PUSH, json.dumps([push, push]))
    here = client(RECOMMEND, json.dumps([str(shop), None, None]))
    there = client(RECOMMEND, json.dumps(["ann/shop", None, None]))
    client.close()
    assert (first, second) == (0, 0), out
    assert any("/xet-write-token/" in each for each in hub.requests)
    assert not any(each.startswith("PUT /storage") for each in hub.requests)
    kept = b"".join(path.read_bytes() for path in hub.xet_folder.rglob("*") if path.is_file())
    assert len(kept) > 1000
    repository = hub.repositories["models", "ann/shop"]
    assert repository.files == contents(shop)
    assert len(repository.branches["main"]) == 2
    assert here == there
