import json
import shutil
import socket
import sqlite3
import struct
from importlib.util import find_spec

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import train_experiment

TRACKERS = ["tensorboard", "wandb", "trackio"]
METRICS = ("hit_rate@10", "mrr@10", "ndcg@10")
SECTIONS = {
    "data": {"dataset": "", "mask_ratio": 0.4},
    "model": {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9},
    "training": {
        "learning_rate": 0.01,
        "batch_size": 32,
        "max_steps": 7,
        "logging_steps": 2,
        "evaluation_steps": 3,
        "checkpoint_steps": 3,
        "trackers": TRACKERS,
    },
    "evaluation": {"ks": [10], "num_bootstrap_samples": 50},
    "card": {"dataset_name": "generated", "dataset_license": "none"},
}

BLOCK = 2**15
FILE_HEADER, RECORD_HEADER = 7, 7
WHOLE, LAST = 1, 4

# Not imported yet: trackio decides on its folder as it is imported.
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, TRACKERS)), reason="wandb or trackio is not installed"
)


def records_of_wandb(path):
    """What an offline run was written as: protobuf in LevelDB's log format, with a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), FILE_HEADER, b""
    while place < len(content):
        if BLOCK - place % BLOCK < RECORD_HEADER:  # the rest of a block is empty
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        place += RECORD_HEADER + length
        record += content[place - length : place]
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""


def read_wandb(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, scalars = {}, {}
    for record in records_of_wandb(path):
        kind = record.WhichOneof("record_type")
        if kind == "config":
            config |= {each.key: json.loads(each.value_json) for each in record.config.update}
        if kind == "history":
            row = {
                each.key or each.nested_key[0]: json.loads(each.value_json)
                for each in record.history.item
            }
            scalars |= {(name, row["_step"]): row[name] for name in row if name[0] != "_"}
    return config, scalars


def read_tensorboard(folder, project):
    events = EventAccumulator(str(folder / "logs" / project)).Reload()
    scalars = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }
    (path,) = (folder / "logs" / project).glob("*/hparams.yml")
    return yaml.safe_load(path.read_text()), scalars


def read_trackio(folder, project):
    with sqlite3.connect(folder / f"{project}.db") as database:
        rows = list(database.execute("select run_name, step, metrics from metrics"))
        ((config,),) = database.execute("select config from configs")
    assert {name for name, _, _ in rows} == {"tiny"}
    config = {name: value for name, value in json.loads(config).items() if name[0] != "_"}
    del config["allow_val_change"]  # accelerate's word to wandb, which trackio takes for a setting
    return config, {
        (name, step): value
        for _, step, metrics in rows
        for name, value in json.loads(metrics).items()
    }


@pytest.fixture(scope="module")
def stranger():
    """A server that would be asked for everything that lies outside of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def start(root, stranger):
    """Train as often as asked, in the surroundings of someone who wants wandb to stay offline."""
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, root / "data", PreparationConfig(synthetic=synthetic))
    path = root / "configs" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(SECTIONS | {"data": {"dataset": str(root / "data")}}))
    proxy = f"http://127.0.0.1:{stranger.getsockname()[1]}"
    settings = {name: proxy for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    settings |= {"WANDB_MODE": "offline", "WANDB_CONSOLE": "off", "TRACKIO_DIR": str(root / "db")}

    def train(**options):
        experiment = load_experiment(path)
        torch.manual_seed(0)
        accelerator = build_accelerator(experiment, root / "tiny")
        return train_experiment(experiment, root / "tiny", accelerator, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield train


@pytest.fixture(scope="module")
def tracked(root, start):
    """What the run returned, and config and scalars as each tracker recorded them."""
    returned = start()
    return returned, {
        "tensorboard": read_tensorboard(root / "tiny", "tiny"),
        "wandb": read_wandb(root / "tiny"),
        "trackio": read_trackio(root / "db", "tiny"),
    }


def test_every_tracker_records_each_log_and_each_validation(tracked):
    returned, recorded = tracked
    expected = {
        (f"train/{name}", step)
        for name in ("loss", "learning_rate", "histories_per_second")
        for step in (2, 4, 6, 7)
    }
    validations = {
        (f"validation/{name}", each["step"]): each[name]
        for each in returned["training"]["validations"]
        for name in (*METRICS, "coverage@10", "recommended_items@10", "is_collapsed")
    }
    assert {step for _, step in validations} == {3, 6, 7}
    for _, scalars in recorded.values():
        assert scalars.keys() == expected | validations.keys()
        assert {place: scalars[place] for place in validations} == pytest.approx(
            validations, rel=1e-6
        )


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_record_the_same_values(tracked, name):
    _, recorded = tracked
    assert recorded[name][1] == pytest.approx(recorded["tensorboard"][1], rel=1e-6)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_knows_the_settings_and_the_hardware(tracked, name):
    returned, recorded = tracked
    config = recorded[name][0]
    assert config == recorded["tensorboard"][0]
    assert config["experiment.training.learning_rate"] == "0.01"
    assert config["dataset_fingerprint"] == returned["dataset_fingerprint"]
    assert config["versions.torch"] == torch.__version__
    assert config["device.name"] == returned["device"]["name"]
    for setting in ("num_processes", "mixed_precision", "dynamo_backend", "commit"):
        assert config[setting] == str(returned[setting])


def test_no_tracker_asks_the_network(tracked, stranger):
    with pytest.raises(BlockingIOError):
        stranger.accept()


def test_a_resumed_run_is_the_same_run_to_trackio(root, tracked, start):
    shutil.rmtree(root / "tiny" / "checkpoints" / "step-00000007")
    start(is_resumed=True)
    with sqlite3.connect(root / "db" / "tiny.db") as database:
        rows = list(database.execute("select run_id, step from metrics"))
    assert len({run for run, _ in rows}) == 1
    assert sorted(step for _, step in rows) == [2, 3, 4, 6, 6, 7, 7, 7, 7]
