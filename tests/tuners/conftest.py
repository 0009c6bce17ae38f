"""A small model with large weights, and one batch laid out in three ways."""

import pytest
import torch

from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

HISTORIES = [[5, 1], [9, 3], [1], [7, 1, 12, 1, 30], [1, 4, 4]]
TARGETS = [[-100, 8], [-100, -100], [22], [-100, 9, -100, 36, -100], [17, -100, -100]]


def pad(rows, fill):
    return torch.tensor([[fill] * (5 - len(row)) + row for row in rows])


def pack(rows):
    return torch.tensor([[value for row in rows for value in row]])


def pack_batch(histories, targets):
    ends = torch.tensor([0, *map(len, histories)]).cumsum(0).int()
    return {
        "input_ids": pack(histories),
        "labels": pack(targets),
        "cu_seq_lens_q": ends,
        "max_length_q": 5,
        "masked_positions": (pack(targets)[0] != -100).nonzero()[:, 0],
    }


def fill_batch(batch):
    """Two histories of padding behind the others, an empty one, and a masked item in excess."""
    filled = dict(batch)
    for name, fill in (("input_ids", 0), ("labels", -100)):
        filled[name] = torch.cat([batch[name], torch.full((1, 4), fill)], dim=1)
    ends = batch["cu_seq_lens_q"]
    filled["cu_seq_lens_q"] = torch.cat([ends, ends[-1] + torch.tensor([3, 4, 4])]).int()
    filled["masked_positions"] = torch.cat([batch["masked_positions"], torch.tensor([16])])
    return filled


@pytest.fixture(scope="session")
def make_base():
    """Build the same base model again and again."""

    def make(kind=BERT4RecForMaskedItemModeling, **settings):
        torch.manual_seed(2)
        shape = {
            "vocab_size": 37,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "max_history_length": 11,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            # Large enough for attention to matter.
            "initializer_range": 0.3,
        }
        return kind(BERT4RecConfig(**shape | settings)).eval()

    return make


@pytest.fixture
def base(make_base):
    return make_base()


@pytest.fixture
def histories():
    return HISTORIES, TARGETS


@pytest.fixture
def batches():
    packed = pack_batch(HISTORIES, TARGETS)
    padded = {"input_ids": pad(HISTORIES, 0), "labels": pad(TARGETS, -100)}
    return {"padded": padded, "packed": packed, "filled": fill_batch(packed)}


@pytest.fixture
def packed(batches):
    return batches["packed"]


@pytest.fixture(scope="session")
def loss_and_gradients():
    """The loss of a batch, and the gradients of what is trained."""

    def measure(model, batch):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        grads = {
            name: weight.grad.clone()
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        return {"loss": loss.detach(), **grads}

    return measure
