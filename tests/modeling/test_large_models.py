import json
import subprocess
import sys
from pathlib import Path

import pytest

CLEAR_REFS = Path("/proc/self/clear_refs")

LEAST = 0.4
"""Less would say that the measurement missed the weights; some of their pages may be reclaimed."""

MEASURE = """
import json, sys
from pathlib import Path

from peft import LoraConfig, get_peft_model

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.hub.model_folder import load_model, save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

ITEMS = [f"item-{number}" for number in range(10_007)]


def build(hidden_size=1280, **settings):
    shape = {"num_hidden_layers": 1, "num_attention_heads": 5, "intermediate_size": hidden_size}
    sizes = {"vocab_size": len(ITEMS) + 2, "hidden_size": hidden_size}
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | sizes | settings))


def read(model):
    for weight in model.parameters():
        weight.sum()  # a file that is mapped comes into memory as it is read
    return model


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure(act, model=None):
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    model = act() or model
    num_bytes = sum(4 * weight.numel() for weight in model.parameters())
    return (resident("VmHWM") - before) / num_bytes


def measure_all(root, **shape):
    peaks = {name: measure(lambda: build(tie_word_embeddings=name == "tied", **shape))
             for name in ("tied", "untied")}
    model = build(**shape)
    peaks["save"] = measure(lambda: save_model_folder(model, root, root / "model"), model)
    model.name_or_path = str(root / "model")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    save_model_folder(model, root, root / "adapter")
    del model
    for name in ("model", "adapter"):
        peaks[name] = measure(lambda: read(load_model(root / name)))
    load = lambda: read(Recommender.from_pretrained(root / "model").scorer.model)
    return peaks | {"recommender": measure(load)}


root = Path(sys.argv[1])
build_vocabulary(ITEMS).save_pretrained(root)
measure_all(root, hidden_size=10)  # what is taken once only is taken here
print(json.dumps(measure_all(root)))
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """The most memory that each way to a model took, over the bytes of its weights, some 90 MB."""
    if not CLEAR_REFS.exists():
        pytest.skip("this system does not tell the high-water mark of a process")
    root = tmp_path_factory.mktemp("large")
    command = [sys.executable, "-c", MEASURE, str(root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_model_is_built_without_a_second_copy(peaks, name):
    assert LEAST < peaks[name] < 1.25, peaks


@pytest.mark.parametrize("name", ["model", "adapter", "recommender"])
def test_a_folder_is_loaded_without_a_second_copy(peaks, name):
    assert LEAST < peaks[name] < 1.25, peaks


def test_a_model_is_saved_without_a_copy(peaks):
    assert peaks["save"] < 0.25, peaks
