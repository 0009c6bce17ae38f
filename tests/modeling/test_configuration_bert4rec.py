import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from bert4rec_hf.modeling import BERT4RecConfig


def test_a_saved_config_loads_through_auto_config(tmp_path):
    BERT4RecConfig(vocab_size=37, hidden_size=24, position_origin="newest").save_pretrained(
        tmp_path
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is BERT4RecConfig
    assert (config.vocab_size, config.num_items, config.hidden_size) == (37, 35, 24)
    assert config.position_origin == "newest"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 2}, "vocab_size must exceed 2 .* got 2"),
        (
            {"hidden_size": 10, "num_attention_heads": 3},
            "multiple of num_attention_heads, got 10 and 3",
        ),
        ({"max_history_length": 1}, "at least an item and the mask after it, got 1"),
        ({"position_origin": "middle"}, "one of oldest, newest, got 'middle'"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout must be in \[0, 1\), got 1.0"),
        ({"mask_token_id": 5}, "are 0 and 1 in every BERT4Rec vocabulary, got 0 and 5"),
        ({"hidden_size": "64"}, "hidden_size"),
    ],
)
def test_an_impossible_setting_is_refused(settings, message):
    with pytest.raises(StrictDataclassError) as caught:
        BERT4RecConfig(**settings)
    assert re.search(message, str(caught.value.__cause__))
