import pytest
from transformers import AutoTokenizer

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import (
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
    BERT4RecTokenizer,
)
from bert4rec_hf.modeling.publishing import set_tokenizer_class


@pytest.fixture
def tokenizer(tmp_path):
    build_vocabulary(["12", "1", "a b"]).save_pretrained(tmp_path)
    config = BERT4RecConfig(vocab_size=5, hidden_size=4, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    set_tokenizer_class(tmp_path, max_history_length=3)
    return AutoTokenizer.from_pretrained(tmp_path)


def encode(tokenizer, *items, **options):
    return tokenizer(list(items), is_split_into_words=True, **options).input_ids


def test_a_new_item_splits_no_known_one(tokenizer):
    assert type(tokenizer) is BERT4RecTokenizer
    assert tokenizer.add_tokens(["2", "1", "2"]) == 1
    assert len(tokenizer) == 6
    assert encode(tokenizer, "12", "2", "a b") == [2, 5, 4]


def test_a_grown_vocabulary_is_loaded_again(tokenizer, tmp_path):
    tokenizer.add_tokens("2")
    tokenizer.save_pretrained(tmp_path / "grown")
    BERT4RecConfig(vocab_size=6).save_pretrained(tmp_path / "grown")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert type(loaded) is BERT4RecTokenizer
    assert encode(loaded, "12", "2", "a b") == [2, 5, 4]
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(vocab_size=5))
    model.resize_token_embeddings(len(loaded))
    assert model.get_output_embeddings().weight.shape[0] == 6


def test_an_unknown_item_is_named(tokenizer):
    message = "1 of 3 items are not in the catalog, the first is 'zardoz'"
    with pytest.raises(KeyError, match=message):
        encode(tokenizer, "12", "zardoz", "1")
    with pytest.raises(KeyError, match=r"2 of 3 .* 'x'.*pipeline\('next-item-recommendation'\)"):
        tokenizer([["12", "x"], ["y"]], is_split_into_words=True)


def test_truncation_keeps_the_newest_items(tokenizer):
    assert encode(tokenizer, "12", "1", "a b", "1", truncation=True) == [3, 4, 3]
