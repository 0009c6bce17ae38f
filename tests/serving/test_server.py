import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402
from peft import get_peft_model  # noqa: E402

from bert4rec_hf.commands.main import main  # noqa: E402
from bert4rec_hf.serving.batching import Batcher, Request, TooManyRequestsError  # noqa: E402
from bert4rec_hf.serving.server import Limits, build_app, load_recommenders  # noqa: E402
from bert4rec_hf.tuners import TUNERS  # noqa: E402

ITEMS = [f"item-{number:02}" for number in range(31)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=6
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    model = BERT4RecForMaskedItemModeling.from_pretrained(folder)
    config = TUNERS["lora"](r=2, target_modules=["up_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recommenders(folder, adapter):
    return load_recommenders(folder, {"summer": str(adapter)})


@pytest.fixture(scope="module")
def client(recommenders):
    limits = Limits(max_items=9, max_name_length=10, max_k=20, max_body_bytes=2_000)
    with TestClient(build_app(recommenders, limits)) as client:
        yield client


def names(answer):
    return [each["item"] for each in answer.json()["items"]]


def test_a_history_is_answered_as_the_recommender_does(client, folder):
    expected = Recommender.from_pretrained(folder).recommend(ITEMS[3:6], k=4)
    found = client.post("/recommend", json={"items": ITEMS[3:6], "k": 4})
    assert found.status_code == 200
    assert found.json()["items"] == [
        {"item": each.item, "score": pytest.approx(each.score, abs=1e-6), "title": None}
        for each in expected
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": ITEMS[:9]},
        {"exclude": ITEMS[:9]},
        {"exclude_seen": False},
        {"unknown": "skip"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_are_those_of_the_recommender(client, recommenders, options):
    expected = recommenders["base"].recommend(ITEMS[3:6], k=5, **options)
    found = client.post("/recommend", json={"items": ITEMS[3:6], "k": 5, **options})
    assert names(found) == [each.item for each in expected]


def test_an_adapter_is_called_by_its_name(client, folder, adapter):
    expected = Recommender.from_pretrained(folder, adapter=adapter).recommend(ITEMS[3:6], k=20)
    found = client.post("/recommend", json={"items": ITEMS[3:6], "k": 20, "adapter": "summer"})
    assert names(found) == [each.item for each in expected]
    assert names(found) != names(client.post("/recommend", json={"items": ITEMS[3:6], "k": 20}))


def test_adapters_share_the_weights_of_the_model(recommenders):
    tables = {name: each.scorer.weight.data_ptr() for name, each in recommenders.items()}
    assert tables["base"] == tables["summer"]


def test_similar_items_have_the_largest_cosine(client, recommenders):
    table = recommenders["base"].scorer.weight.detach().numpy()[2:].astype(np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    expected = np.argsort(-(table @ table[7]), kind="stable")[1:6]
    found = client.post("/similar", json={"item": ITEMS[7], "k": 5})
    assert names(found) == [ITEMS[place] for place in expected]


def test_health_names_the_adapters(client):
    expected = {"status": "ok", "items": 31, "adapters": ["summer"], "waiting": 0}
    assert client.get("/health").json() == expected


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/recommend", {"items": ["zardoz"]}, 422, "none of the 1 items of the history is in"),
        ("/recommend", {"items": []}, 422, "none of the 0 items of the history is in"),
        (
            "/recommend",
            {"items": [ITEMS[0], "zardoz"], "unknown": "error"},
            422,
            "1 of 2 items are not in the catalog, the first is 'zardoz'",
        ),
        ("/recommend", {"items": ITEMS[:1], "k": 0}, 422, "greater than or equal to 1"),
        ("/recommend", {"items": ITEMS[:1], "k": 21}, 422, "less than or equal to 20"),
        ("/recommend", {"items": ITEMS[:1], "K": 2}, 422, "Extra inputs are not permitted"),
        ("/recommend", {"items": ITEMS[0]}, 422, "valid list"),
        ("/recommend", {"items": [7]}, 422, "valid string"),
        ("/recommend", {"items": ITEMS[:10]}, 422, "at most 9 items"),
        ("/recommend", {"items": ["x" * 11]}, 422, "at most 10 characters"),
        (
            "/recommend",
            {"items": ITEMS[:1], "adapter": "winter"},
            404,
            "no adapter 'winter', known",
        ),
        (
            "/recommend",
            {"items": ITEMS[:1], "candidates": ["zardoz"]},
            422,
            "none of the candidates",
        ),
        ("/recommend", {"items": ["x" * 2_000]}, 413, "more than the limit of 2,000"),
        ("/similar", {"item": "zardoz"}, 422, "the first is 'zardoz'"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(client, path, body, status, message):
    found = client.post(path, json=body)
    assert found.status_code == status
    assert message in found.text


def test_a_body_of_unsaid_length_is_refused(client):
    found = client.post("/recommend", content=iter([b"{}"]))
    assert found.status_code == 411


class CountingRecommender:
    """Notes what it is asked together; slow, so that requests gather meanwhile."""

    def __init__(self, recommender):
        self.recommender, self.calls = recommender, []

    def recommend(self, histories, k, **options):
        self.calls.append(len(histories))
        time.sleep(0.05)
        return self.recommender.recommend(histories, k, **options)


@contextmanager
def running(batcher, loop):
    task = loop.create_task(batcher.run())
    yield
    task.cancel()
    batcher.close()


@pytest.mark.filterwarnings("ignore:1 of")
def test_requests_gather_while_others_are_answered(recommenders):
    counting = CountingRecommender(recommenders["base"])
    histories = [[ITEMS[number]] for number in range(20)] + [["zardoz"]]

    async def ask_all():
        batcher = Batcher({"base": counting})
        with running(batcher, asyncio.get_running_loop()):
            asked = [batcher.ask(Request("base", each, 3)) for each in histories]
            return await asyncio.gather(*asked, return_exceptions=True)

    *answers, last = asyncio.run(ask_all())
    assert sum(counting.calls) == 21
    assert len(counting.calls) <= 2
    for history, answer in zip(histories, answers, strict=False):
        expected = recommenders["base"].recommend(history, k=3)
        assert [each.item for each in answer] == [each.item for each in expected]
    assert "none of the 1 items" in str(last)


def test_requests_beyond_the_limit_are_refused(recommenders):
    async def ask_three():
        batcher = Batcher(recommenders, max_waiting=2)  # nobody answers yet
        first = [asyncio.create_task(batcher.ask(Request("base", ITEMS[:1], 3))) for _ in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError):
            await batcher.ask(Request("base", ITEMS[:1], 3))
        for task in first:
            task.cancel()

    asyncio.run(ask_three())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "summer"], "--adapter must be NAME=FOLDER, got 'summer'"),
        (["--adapter", "a=x", "--adapter", "a=y"], "--adapter a is given twice"),
        (["--adapter", "base=x"], "'base' is the model without an adapter"),
        (["--max-k", "0"], "--max-k must be at least 1, got 0"),
    ],
)
def test_a_server_that_cannot_be_is_refused(folder, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["serve", str(folder), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_and_ends_cleanly_with_requests_under_way(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bert4rec_hf.commands.serve", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                assert httpx.get(f"{url}/health").json()["items"] == 31
                break
            except httpx.ConnectError:
                time.sleep(0.2)
        found = []

        def ask():
            found.append(httpx.post(f"{url}/recommend", json={"items": ITEMS[:2]}, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert httpx.post(f"{url}/recommend", json={"items": ["zardoz"]}).status_code == 422
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    finally:
        server.kill()
    assert [each.status_code for each in found] == [200] * 20
    assert "Traceback" not in log
    assert "UserWarning" not in log
    assert "Application shutdown complete" in log
