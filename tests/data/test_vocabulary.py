import pytest
from transformers import AutoTokenizer

from bert4rec_hf.data.vocabulary import (
    build_vocabulary,
    catalog_items,
    vocabulary_fingerprint,
)

ODD_ITEMS = ["9", "99", "a b", " lead", "é 映画", "\"q\" 'x'", "see [MASK]", "[UNK]", "x\ny"]


def test_ids_follow_the_given_order_after_padding_and_mask():
    vocabulary = build_vocabulary(["dune", "alien", "brazil"])
    tokens = ["[PAD]", "[MASK]", "dune", "alien", "brazil"]
    assert vocabulary.convert_tokens_to_ids(tokens) == [0, 1, 2, 3, 4]
    assert (vocabulary.pad_token_id, vocabulary.mask_token_id, len(vocabulary)) == (0, 1, 5)


def test_any_string_is_an_item_also_after_loading_without_our_code(tmp_path):
    build_vocabulary(ODD_ITEMS).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    expected = list(range(2, 2 + len(ODD_ITEMS)))
    assert loaded(ODD_ITEMS, is_split_into_words=True).input_ids == expected
    assert loaded.convert_ids_to_tokens(expected) == ODD_ITEMS
    assert loaded.convert_tokens_to_ids(["never seen"]) == [None]


def test_an_item_named_unk_is_no_unknown_token(tmp_path):
    build_vocabulary(["<unk>", "dune"]).save_pretrained(tmp_path)
    vocabulary = AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary(["dune", "<unk>"], is_split_into_words=True).input_ids == [3, 2]
    with pytest.raises(Exception, match="Missing"):
        vocabulary(["no such item"], is_split_into_words=True)


def test_histories_are_padded_and_cut_at_their_old_end(tmp_path):
    build_vocabulary(["dune", "alien", "brazil"]).save_pretrained(tmp_path)
    histories = [["dune"], ["alien", "brazil", "dune"]]
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        histories, is_split_into_words=True, padding=True, truncation=True, max_length=2
    )
    assert batch.input_ids == [[0, 2], [4, 2]]
    assert batch.attention_mask == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "needs at least one item, got none"),
        (["dune", ""], "item 1 of 2 has an empty name"),
        (["dune", "alien", "dune"], "item 'dune' occurs twice"),
        (["[PAD]"], r"'\[PAD\]' is the name of a special token"),
        (["dune", "[MASK]"], r"'\[MASK\]' is the name of a special token"),
    ],
)
def test_an_item_without_a_name_of_its_own_is_refused(items, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(items)


def test_the_fingerprint_is_that_of_the_items_in_their_order(tmp_path):
    build_vocabulary(ODD_ITEMS).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert catalog_items(loaded) == ODD_ITEMS
    assert vocabulary_fingerprint(loaded) == vocabulary_fingerprint(ODD_ITEMS)
    others = [ODD_ITEMS[::-1], ODD_ITEMS[1:], ["9", "99a", " b", *ODD_ITEMS[3:]]]
    assert vocabulary_fingerprint(ODD_ITEMS) not in map(vocabulary_fingerprint, others)
