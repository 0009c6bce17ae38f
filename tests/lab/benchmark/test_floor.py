from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from bert4rec_hf.lab.benchmark.bert4rec import build_config, build_loader
from bert4rec_hf.lab.benchmark.floor import (
    BatchSize,
    FloorContestant,
    Product,
    measure_batch,
    product_sizes,
)
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling


def test_a_product_is_that_of_a_linear_layer_and_its_backward():
    product = Product(5, 3, 7, dtype=torch.float32, device=torch.device("cpu"))
    product.run()
    read, weight = product.read.clone().requires_grad_(), product.weight.clone().requires_grad_()
    written = F.linear(read, weight)
    written.backward(written.detach())
    torch.testing.assert_close(product.written, written.detach())
    torch.testing.assert_close(product.read_grad, read.grad)
    torch.testing.assert_close(product.weight_grad, weight.grad)


def test_the_encoders_products_use_each_weight_once_per_item(tiny):
    task = tiny("floor")
    size = BatchSize(items=41, masked=9, squares=7 * 5**2, item_rows=23)
    *layers, head = product_sizes(task, size, is_sampled=False)
    assert head == (9, 97, 12)
    linear = [sizes for sizes in layers if len(sizes) == 3]
    # All of the first layer's items; keys and values of the last layer's, and its 9 masked ones.
    assert [rows for rows, _, _ in linear] == [41] * 5 + [41] + [9] * 4
    model = BERT4RecForMaskedItemModeling(build_config(task, "full_softmax"))
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    assert sum(columns * inner for _, columns, inner in linear) == sum(w.numel() for w in matrices)
    # 7 histories with 3 heads of 4 numbers each; the mean of the squared lengths is that of 5.
    attention = [sizes for sizes in layers if len(sizes) == 4]
    assert attention == [(21, 5, 5, 4), (21, 5, 4, 5), (21, 1, 5, 4), (21, 1, 4, 5)]


def test_the_head_with_negatives_scores_only_them(tiny):
    size = BatchSize(items=41, masked=9, squares=100, item_rows=23)
    assert product_sizes(tiny("sampled_floor"), size, is_sampled=True)[-1] == (9, 5, 12)


def test_a_batch_is_measured_by_its_real_items(tiny):
    batch = next(iter(build_loader(tiny("floor"), is_sampled=False)))
    labels = batch["labels"][batch["labels"] >= 0]
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    lengths = [stop - start for start, stop in pairwise([*starts, batch["input_ids"].numel()])]
    size = measure_batch(batch)
    assert size.items == sum(lengths)
    assert size.masked == len(labels)
    assert size.squares == sum(length**2 for length in lengths)
    ids = {*batch["input_ids"].flatten().tolist(), *labels.tolist()}
    assert size.item_rows == len(ids)


@pytest.mark.parametrize("is_sampled", [False, True])
def test_the_floor_counts_the_items_of_the_workloads_batches(tiny, is_sampled):
    floor = FloorContestant(tiny("floor"), is_sampled=is_sampled)
    floor.build()
    work = floor.train(3)
    assert work.histories == 3 * 7
    loader = build_loader(tiny("floor"), is_sampled=False)
    batches = [next(batches) for batches in [iter(loader)] for _ in range(64)]
    mean = sum(batch["input_ids"].numel() for batch in batches) / 64
    assert work.items == pytest.approx(3 * mean, abs=1)
