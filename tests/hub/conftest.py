import pytest
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.publishing import set_tokenizer_class
from tests.hub.client import Client
from tests.hub.hub_server import serve_hub

ITEMS = ["alien", "brazil", "dune (1984)", "éclair", "fargo", "gattaca", "heat"]
CARD = "---\nlicense: mit\n---\n\n# Seven films\n\nMeasured with these weights.\n"


def contents(folder):
    """What a push of a folder publishes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".hub.json"
    }


@pytest.fixture(scope="session")
def session_hub():
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(session_hub):
    """An empty hub."""
    session_hub.clear()
    return session_hub


@pytest.fixture(scope="session")
def client(session_hub, tmp_path_factory):
    """Run code in a process of a user of the hub."""
    folder = tmp_path_factory.mktemp("client")
    client = Client(session_hub.environment(folder / "home"), folder / "work")
    yield client
    client.close()


@pytest.fixture(scope="session")
def bare_client(session_hub, tmp_path_factory):
    """Run code in a process of a user of the hub who does not have the package."""
    folder = tmp_path_factory.mktemp("bare")
    client = Client(session_hub.environment(folder / "home"), folder / "work", has_package=False)
    yield client
    client.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder as training leaves it: weights, code, vocabulary, titles, card."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("shop") / "model"
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=4
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    set_tokenizer_class(path, config.max_history_length)
    (path / "titles.json").write_text('{"alien": "Alien (1979)"}')
    (path / "README.md").write_text(CARD)
    return path
