"""What the gate costs: a step beside one of LoRA's, in turns."""

import time

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.tuners import ILoraConfig

SHAPE = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.slow
def test_a_step_on_prefix_views_costs_at_most_a_tenth_more_than_that_of_lora():
    """A tenth, where a quiet machine shows three per cent: the bound is for a busy one."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 200, 32)
    examples = [
        {"items": generator.integers(2, 3_000, length), "view": row}
        for row, length in enumerate(lengths)
    ]
    batch = MaskedItemCollator(max_history_length=200, prefix_view_ratio=0.9)(examples)
    network = {"hidden_size": 64, "max_history_length": 200, "attention_dropout": 0.0}
    models = []
    for config in (LoraConfig(**SHAPE), ILoraConfig(**SHAPE)):
        base = BERT4RecForMaskedItemModeling(BERT4RecConfig(vocab_size=3_002, **network))
        models.append(get_peft_model(base, config).train())
    seconds = [[], []]
    for _ in range(30):
        for model, times in zip(models, seconds, strict=True):
            start = time.process_time()
            model(**batch).loss.backward()
            times.append(time.process_time() - start)
    lora, ilora = (np.median(times[3:]) for times in seconds)
    assert ilora < 1.1 * lora
