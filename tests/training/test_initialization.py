import subprocess
import sys

import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.baselines import similarity_by_co_occurrence
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training import initialization
from bert4rec_hf.training.initialization import (
    begin_with_average,
    co_occurrence_bytes,
    co_occurrence_vectors,
    set_item_vectors,
)

VOCAB_SIZE = 14
LONER = 13


def make_histories():
    generator = np.random.default_rng(0)
    return [generator.integers(2, LONER, size=length) for length in (7, 2, 9, 5, 1, 12, 6)]


def similarity_by_loops(histories, max_distance):
    counts, popularity = np.zeros((VOCAB_SIZE, VOCAB_SIZE)), np.zeros(VOCAB_SIZE)
    for history in histories:
        for place, item in enumerate(history):
            popularity[item] += 1
            for other in range(len(history)):
                distance = abs(place - other)
                if 1 <= distance <= max_distance and history[other] != item:
                    counts[item, history[other]] += 1 / distance
    return counts / np.sqrt(np.outer(popularity + 5, popularity + 5))


@pytest.mark.parametrize(("size", "max_distance"), [(VOCAB_SIZE, 3), (4, 3), (4, 5), (17, 2)])
def test_products_of_vectors_are_the_nearest_there_are_to_the_similarity(size, max_distance):
    histories = make_histories()
    vectors = co_occurrence_vectors(histories, VOCAB_SIZE, size, max_distance=max_distance)
    assert vectors.shape == (VOCAB_SIZE, size)
    values, directions = np.linalg.eigh(similarity_by_loops(histories, max_distance))
    kept = np.argsort(-abs(values))[:size]
    expected = directions[:, kept] * abs(values[kept]) @ directions[:, kept].T
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=2e-3)


def test_a_large_catalog_has_few_factors_in_as_wide_vectors(monkeypatch):
    whole = co_occurrence_vectors(make_histories(), VOCAB_SIZE, 3)
    monkeypatch.setattr(initialization, "LARGE_CATALOG", VOCAB_SIZE - 1)
    monkeypatch.setattr(initialization, "MAX_FACTORS", 3)
    vectors = co_occurrence_vectors(make_histories(), VOCAB_SIZE, 8)
    assert vectors.shape == (VOCAB_SIZE, 8)
    assert np.linalg.matrix_rank(vectors) == 3
    np.testing.assert_allclose(vectors @ vectors.T, whole @ whole.T, atol=2e-3)


def test_of_many_interactions_those_of_some_whole_histories_are_counted(monkeypatch):
    histories = make_histories()
    counted = []

    def count(some, *rest):
        counted.append([each.tolist() for each in some])
        return similarity_by_co_occurrence(some, *rest)

    monkeypatch.setattr(initialization, "similarity_by_co_occurrence", count)
    everything = co_occurrence_vectors(histories, VOCAB_SIZE, 4)
    monkeypatch.setattr(initialization, "MAX_COUNTED_ITEMS", 20)
    some = co_occurrence_vectors(histories, VOCAB_SIZE, 4)
    whole = [each.tolist() for each in histories]
    assert counted[0] == whole
    assert all(each in whole for each in counted[1])
    assert 20 - max(map(len, whole)) < sum(map(len, counted[1])) <= 20
    assert not torch.equal(some, everything)
    assert torch.equal(some, co_occurrence_vectors(histories, VOCAB_SIZE, 4))


HEIGHT = """
import sys
import numpy as np, torch
from bert4rec_hf.training.initialization import co_occurrence_vectors
from bert4rec_hf.training.process_memory import peak_resident_bytes

num_items, size = map(int, sys.argv[1:])
draws = np.random.default_rng(0)
histories = list(draws.integers(2, 2 + num_items, size=(75_000, 8), dtype=np.int32))
torch.from_numpy(np.ones((9, 9))) @ torch.ones(9, 9).double()
before = peak_resident_bytes()
co_occurrence_vectors(histories, 2 + num_items, size)
print(peak_resident_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_items", "size"), [(20_000, 16), (90_000, 128)])
def test_counting_and_factorizing_take_about_the_memory_that_was_estimated(num_items, size):
    done = subprocess.run(
        [sys.executable, "-c", HEIGHT, str(num_items), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    estimate = co_occurrence_bytes(np.full(75_000, 8), 2 + num_items, size)
    assert 0.7 < estimate / int(done.stdout) < 2


def test_the_height_of_the_start_by_hand(monkeypatch):
    lengths = np.array([7, 2])  # 6 + 5 + 4 pairs of the one at distances up to 3, and one pair
    basis = 4 * 1_000 * (16 + 16)
    assert co_occurrence_bytes(lengths, 1_000, 16, max_distance=3) == 20 * 2 * 16 + 4 * basis
    wide = co_occurrence_bytes(lengths, 1_000, 300, max_distance=3)
    assert wide == 5 * 4 * 1_000 * 300
    many = np.full(1_000_000, 8)  # of which 5 of 8 million interactions are counted
    entries = 2 * (7 + 6 + 5 + 4 + 3) * 1_000_000 * 5 / 8
    assert co_occurrence_bytes(many, 1_000, 16) == max(24 * entries, 20 * entries + 4 * basis)
    monkeypatch.setattr(initialization, "LARGE_CATALOG", 999)
    monkeypatch.setattr(initialization, "MAX_FACTORS", 4)
    fewer = co_occurrence_bytes(lengths, 1_000, 16, max_distance=3)
    assert fewer == 20 * 2 * 16 + 4 * 4 * 1_000 * (4 + 16)


def test_coordinates_vary_alike():
    # Without the turn, the first coordinate would hold most of the variance.
    generator = np.random.default_rng(0)
    histories = [
        2 + generator.integers(10) + 10 * generator.integers(20, size=8) for _ in range(300)
    ]
    spread = co_occurrence_vectors(histories, 202, 16).std(dim=0)
    assert spread.max() / spread.min() < 3


def test_vectors_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (
        co_occurrence_vectors(make_histories(), VOCAB_SIZE, 6, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize("is_tied", [True, False])
def test_tables_take_the_vectors_at_the_size_that_was_drawn(is_tied):
    config = BERT4RecConfig(
        vocab_size=VOCAB_SIZE, hidden_size=6, tie_word_embeddings=is_tied, initializer_range=0.3
    )
    model = BERT4RecForMaskedItemModeling(config)
    tables = [layer.weight for layer in (model.get_input_embeddings(), model.lm_head)]
    drawn = [table.detach().clone() for table in tables]
    vectors = co_occurrence_vectors(make_histories(), VOCAB_SIZE, 6)
    set_item_vectors(model, vectors)
    for table, before in zip(tables, drawn, strict=True):
        for kept in (0, 1, LONER):
            assert torch.equal(table[kept], before[kept])
        items = slice(2, LONER)
        assert table[items].norm().item() == pytest.approx(before[items].norm().item(), rel=1e-5)
        ratios = table[items].detach() / vectors[items]
        torch.testing.assert_close(ratios, ratios[0, 0].expand_as(ratios))


def test_an_untrained_model_reads_the_mean_of_the_history():
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.05,
        norm_first=True,
        position_type="rotary",
        output_transform=False,
        output_bias=False,
    )
    model = BERT4RecForMaskedItemModeling(config).eval()
    history = torch.arange(2, 9)
    inputs = torch.cat([history, torch.tensor([1])])[None]
    items = torch.nn.functional.layer_norm(model.get_input_embeddings().weight, (32,))
    expected = (model.get_input_embeddings().weight @ items[inputs[0]].mean(dim=0))[2:]

    def agreement():
        scores = model(inputs).logits[0, -1, 2:]
        return torch.corrcoef(torch.stack([scores, expected]))[0, 1].item()

    drawn = agreement()
    begin_with_average(model.model.layers)
    assert drawn < 0.5
    assert agreement() > 0.9
