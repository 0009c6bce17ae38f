"""What can be wrong with a model folder, each fault as it would come about."""

import json
import re
import shutil
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bert4rec_hf.data.vocabulary import build_vocabulary, load_vocabulary, vocabulary_fingerprint
from bert4rec_hf.hub.model_folder import load_model, read_vocabulary, save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.tuners import ILoraConfig

ITEMS = ["alien", "brazil", "dune"]
TABLE, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"
LOW_RANK = "base_model.model.model.layers.0.self_attn.q_proj.ilora_A.weight"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    build_vocabulary(ITEMS).save_pretrained(folder)
    statistics = {"vocabulary_fingerprint": vocabulary_fingerprint(ITEMS)}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset):
    """A model folder with nothing wrong."""
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=5, hidden_size=12, intermediate_size=20, max_history_length=7
    )
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model_folder(BERT4RecForMaskedItemModeling(config), dataset, folder)
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, dataset, whole):
    """An adapter folder with nothing wrong, of iLoRA."""
    torch.manual_seed(1)
    config = ILoraConfig(r=4, num_experts=2, target_modules=["q_proj", "up_proj"])
    folder = tmp_path_factory.mktemp("adapted") / "adapter"
    save_model_folder(get_peft_model(load_model(whole), config), dataset, folder)
    return folder


@pytest.fixture
def folder(tmp_path, whole):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def adapter(tmp_path, adapted):
    return shutil.copytree(adapted, tmp_path / "adapter")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refuses(folder, message, load=load_model):
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert time.process_time() - started < 5
    assert str(folder) in str(caught.value)


def test_a_whole_folder_loads_with_the_weights_that_were_saved(whole, adapted):
    stored = load_file(whole / "model.safetensors")
    loaded = load_model(whole).state_dict()
    assert stored.keys() == loaded.keys() - {"lm_head.weight"}
    torch.testing.assert_close({name: loaded[name] for name in stored}, stored, rtol=0, atol=0)
    low_rank = load_file(adapted / "adapter_model.safetensors")[LOW_RANK]
    assert any(torch.equal(low_rank, each) for each in load_model(adapted).state_dict().values())
    assert read_vocabulary(whole) == build_vocabulary(ITEMS).get_vocab()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TABLE), rf"1 missing, the first is {TABLE}; take"),
        (lambda t: t.update(query=t.pop(QUERY)), rf"1 missing, the first is {QUERY}; 1 unknown"),
        (lambda t: t.update({TABLE: t[TABLE].long()}), rf"1 of another type.*{TABLE} \(I64, need"),
        (lambda t: t.update({TABLE: t[TABLE][:4]}), r"embed_tokens.weight \(\(4, 12\), needed \(5"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.1.")],
            "num_hidden_layers 2 and the weights have 1",
        ),
        (lambda t: t[QUERY].fill_(float("nan")), rf"{QUERY} in .* that are not finite"),
        (lambda t: t[QUERY][3].fill_(float("inf")), rf"{QUERY} in .* that are not finite"),
        (lambda t: t.clear(), "num_hidden_layers 2 and the weights have 0"),
    ],
)
def test_other_weights_than_the_configuration_describes_are_refused(folder, change, message):
    rewrite(folder / "model.safetensors", change)
    refuses(folder, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers must be at most 1,000, got 100000"),
        ({"num_hidden_layers": 900}, "num_hidden_layers 900 and the weights have 2"),
        ({"hidden_size": 24}, r"\(5, 12\), needed \(5, 24\)"),
        ({"hidden_size": 2**62}, "hidden_size must be at most 65,536"),
        ({"vocab_size": 10**9}, r"needed \(1000000000, 12\)"),
        ({"intermediate_size": "many"}, "intermediate_size.*many"),
        ({"hidden_act": "relu"}, "was changed since its weights were saved"),
        ({"num_attention_heads": 4}, "was changed since its weights were saved"),
        ({"position_origin": "newest"}, "was changed since its weights were saved"),
        ({"objective": "fuld_softmax"}, "describes no model: objective must be one of"),
        ({"dtype": "float3,2"}, "config.json: .*float3,2"),
        ({"dtype": 32}, "config.json: dtype must be the name of one, got 32"),
        ({"hidden_size": 13}, "hidden_size must be a multiple of num_attention_heads, got 13"),
        ({"model_type": "bert"}, "must have the model_type bert4rec, got bert"),
        ({"hiden_act": "gelu"}, "has no setting hiden_act; did you mean hidden_act?"),
        ({"quantization_config": {"load_in_8bit": True}}, "has quantization_config"),
        ({"attn_implementation": "someone/kernel"}, "has attn_implementation"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_weights_is_refused(folder, settings, message):
    edit(folder / "config.json", lambda content: content.update(settings))
    refuses(folder, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"model_type": ', "line 1: not JSON"),
        (b"[" * 100_000, "config.json is nested too deeply|line 1: not JSON"),
        (b'{"hidden_size": 1' + b"0" * 5000 + b"}", "config.json: .*integer string"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' occurs twice"),
        (b'{"layer_norm_eps": NaN}', "config.json: NaN is not a finite number"),
        (b'{"layer_norm_eps": 1e999}', "config.json: 1e999 is not a finite number"),
        (b'{"model_type": "\xff"}', "config.json is not UTF-8: invalid start byte at byte 16"),
        (b"[]", "config.json must hold a JSON object, got a list"),
        (b" " * 1_000_001, "config.json has 1,000,001 bytes, at most 1,000,000 are read"),
    ],
)
def test_a_config_file_that_is_no_json_object_is_refused(folder, text, message):
    (folder / "config.json").write_bytes(text)
    refuses(folder, message)


def test_settings_that_no_score_depends_on_may_change(folder):
    edit(folder / "config.json", lambda content: content.update(hidden_dropout=0.3))
    assert load_model(folder).config.hidden_dropout == 0.3


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(folder, "model.safetensors is not a complete safetensors file")


def test_a_pickle_is_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refuses(folder, "model.safetensors is missing; pytorch_model.bin is a pickle, which is never")


@pytest.mark.parametrize(
    "name", ["../whole/model.safetensors", "/etc/model.safetensors", "weights.bin", "..", 7]
)
def test_an_index_that_names_files_elsewhere_is_refused(folder, name):
    stored = folder / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(stored), name)}
    stored.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(folder, "not a safetensors file beside it|must have a weight_map")


def test_shards_load_and_a_missing_one_is_named(folder, whole):
    load_model(whole).save_pretrained(folder, max_shard_size="2KB")
    (folder / "model.safetensors").unlink()
    expected = load_model(whole).state_dict()
    torch.testing.assert_close(load_model(folder).state_dict(), expected, rtol=0, atol=0)
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    last.unlink()
    refuses(folder, f"names '{last.name}', which is missing")


def test_code_of_others_is_neither_asked_for_nor_run(folder, tmp_path):
    trap = tmp_path / "ran"
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w')")
    for name in ("config.json", "tokenizer_config.json"):
        edit(
            folder / name,
            lambda content: content.update(
                auto_map={
                    "AutoConfig": "trap.Config",
                    "AutoModelForMaskedLM": "trap.Model",
                    "AutoTokenizer": ["trap.Tokenizer", "trap.Tokenizer"],
                }
            ),
        )
    assert Recommender.from_pretrained(folder).recommend(["dune"])
    assert not trap.exists()


def reorder(content):
    content["model"]["vocab"] = {"[PAD]": 0, "[MASK]": 1, "alien": 3, "brazil": 2, "dune": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reorder, "is not the vocabulary that the model was saved with"),
        (lambda c: c["model"]["vocab"].update(dune=3), "'brazil' and 'dune' both have the id 3"),
        (lambda c: c["model"]["vocab"].update(dune=9), "'dune' has the id 9; the ids of 5 tokens"),
        (lambda c: c["model"]["vocab"].update(dune="4"), "'dune' has the id '4'"),
        (lambda c: c["model"]["vocab"].pop("brazil"), "'dune' has the id 4; the ids of 4 tokens"),
        (
            lambda c: c["model"]["vocab"].update({"[PAD]": 1, "[MASK]": 0}),
            r"id 0 must be \[PAD\], got '\[MASK\]'",
        ),
        (lambda c: c["model"].update(type="BPE"), "its model is not of type WordLevel"),
        (lambda c: c.update(model=7), "its model is not of type WordLevel"),
        (
            lambda c: c["added_tokens"].append(c["added_tokens"][0] | {"id": 5, "content": "x"}),
            "adds the token .*'x'.* not in its vocabulary",
        ),
        (lambda c: c.update(added_tokens=7), "adds the token 7"),
    ],
)
def test_a_vocabulary_with_other_ids_is_refused(folder, change, message):
    edit(folder / "tokenizer.json", change)
    refuses(folder, message, read_vocabulary)
    refuses(folder, message, Recommender.from_pretrained)


def test_another_token_of_padding_is_refused(folder):
    edit(folder / "tokenizer_config.json", lambda content: content.update(pad_token="dune"))
    refuses(folder, "must name .* the ids 0 and 1; got 4 and 1", load_vocabulary)


def test_the_vocabulary_of_an_adapter_folder_is_checked_too(adapter):
    edit(adapter / "tokenizer.json", lambda content: content["model"]["vocab"].update(dune=3))
    refuses(adapter, "'brazil' and 'dune' both have the id 3", read_vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LOW_RANK), rf"1 missing, the first is {LOW_RANK}; take"),
        (lambda t: t.update(a=t.pop(LOW_RANK)), rf"1 missing, the first is {LOW_RANK}; 1 unknown"),
        (
            lambda t: t.update({LOW_RANK: t[LOW_RANK].long()}),
            rf"1 of another type.*{LOW_RANK} \(I64",
        ),
        (lambda t: t.update({LOW_RANK: t[LOW_RANK][:1]}), "cannot be loaded: .*size mismatch"),
        (lambda t: t[LOW_RANK].fill_(float("nan")), "holds numbers that are not finite"),
    ],
)
def test_other_weights_than_those_of_the_adapter_are_refused(adapter, change, message):
    rewrite(adapter / "adapter_model.safetensors", change)
    refuses(adapter, f"(?s){message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 10**9, "num_experts": 10**9}, "says r 1000000000 and no weight of"),
        ({"rank_pattern": {"q_proj": 10**9}}, "says rank_pattern.q_proj 1000000000 and"),
        ({"r": "four"}, "cannot be loaded"),
        ({"num_experts": 3}, "cannot be loaded"),
        ({"target_modules": ["q_proj"]}, "4 unknown, the first is base_model.model.model.layers.0"),
    ],
)
def test_a_configuration_of_another_adapter_is_refused(adapter, settings, message):
    edit(adapter / "adapter_config.json", lambda content: content.update(settings))
    refuses(adapter, message)


def test_a_pickled_adapter_is_not_read(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    refuses(adapter, "adapter_model.safetensors is missing; adapter_model.bin is a pickle")


@pytest.mark.parametrize("kind", ["LORA", "NONSENSE", None, 7])
def test_another_kind_of_adapter_is_refused(adapter, kind):
    edit(adapter / "adapter_config.json", lambda content: content.update(peft_type=kind))
    with pytest.raises(ValueError, match=re.escape(str(adapter))):
        load_model(adapter)


def test_an_adapter_with_rows_of_the_item_table_loads(tmp_path, whole, dataset):
    config = LoraConfig(r=3, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    model = get_peft_model(load_model(whole), config)
    save_model_folder(model, dataset, tmp_path / "rows")
    ids = torch.tensor([[2, 3, 1]])
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path / "rows").eval()(ids).logits, model.eval()(ids).logits
        )


def test_what_is_saved_from_a_loaded_model_does_not_claim_the_old_vocabulary(folder, tmp_path):
    model = load_model(folder)
    model.resize_token_embeddings(6)
    model.save_pretrained(tmp_path / "larger")
    build_vocabulary([*ITEMS, "éclair"]).save_pretrained(tmp_path / "larger")
    assert len(read_vocabulary(tmp_path / "larger")) == 6
    assert load_vocabulary(tmp_path / "larger").convert_tokens_to_ids("éclair") == 5
