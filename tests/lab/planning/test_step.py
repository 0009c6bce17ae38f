import numpy as np
import pytest
import torch

from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.lab.planning.step import Launch, count_ranking, count_step, estimate_step
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

VOCAB, HIDDEN, LAYERS = 211, 24, 3
LENGTHS = (7, 3, 12)


def make_model(objective="full_softmax"):
    with torch.device("meta"):
        return BERT4RecForMaskedItemModeling(
            BERT4RecConfig(
                vocab_size=VOCAB,
                hidden_size=HIDDEN,
                num_attention_heads=3,
                intermediate_size=52,
                num_hidden_layers=LAYERS,
                max_history_length=50,
                norm_first=True,
                objective=objective,
            )
        )


def make_batch(num_negatives=0):
    negatives = NegativeSampler(np.ones(VOCAB), num_negatives, "uniform") if num_negatives else None
    collator = MaskedItemCollator(max_history_length=50, negatives=negatives)
    return collator([{"items": np.arange(2, 2 + n), "view": n} for n in LENGTHS])


def test_a_step_is_its_matrix_products_by_hand():
    model, batch = make_model(), make_batch()
    encoder = sum(weight.numel() for weight in model.parameters()) - VOCAB * HIDDEN
    masked = int(batch["labels"].ne(-100).sum())
    attention = sum(2 * 2 * 3 * n * n * HIDDEN * LAYERS for n in LENGTHS)
    expected = 6 * encoder * sum(LENGTHS) + 6 * masked * HIDDEN * (VOCAB - 2) + attention
    assert count_step(model, [batch, batch], Launch()).operations == expected


def test_a_sampled_step_scores_negatives_and_steps_the_rows_that_it_read():
    model, batch = make_model("sampled_softmax"), make_batch(num_negatives=31)
    dense = count_step(model, [batch], Launch())
    model.use_row_gradients()
    sparse = count_step(model, [batch], Launch())
    masked = int(batch["labels"].ne(-100).sum())
    assert sparse.operations == dense.operations
    left_alone = VOCAB * HIDDEN - (sum(LENGTHS) + masked + 31) * HIDDEN
    assert dense.bytes - sparse.bytes == 7 * 4 * left_alone
    full = count_step(make_model(), [make_batch()], Launch()).operations
    assert full - dense.operations == 6 * masked * HIDDEN * (VOCAB - 2 - 32)


def test_ranking_reads_a_history_and_scores_the_catalog_as_often_as_it_must():
    model = make_model()
    encoder = sum(weight.numel() for weight in model.parameters()) - VOCAB * HIDDEN
    once, twice = (count_ranking(model, 9, passes) for passes in (1, 2))
    attention = 2 * 10 * 10 * HIDDEN * LAYERS
    expected = 2 * (10 * encoder + attention + HIDDEN * (VOCAB - 2))
    assert once.operations == expected
    assert twice.operations - once.operations == 2 * HIDDEN * (VOCAB - 2)
    assert count_ranking(model, 1_000) == count_ranking(model, 50)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_device_that_is_not_here_keeps_small_blocks_once(precision):
    model, batch, launch = make_model(), make_batch(), Launch(precision)
    on_cpu, on_gpu = (
        estimate_step(model, batch, launch, device, 2**20) for device in ("cpu", "cuda")
    )
    assert on_cpu.activations == 2 * on_gpu.activations
    assert on_cpu.parameters == on_gpu.parameters
