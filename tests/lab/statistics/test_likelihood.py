import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.lab.statistics import likelihood
from bert4rec_hf.lab.statistics.likelihood import cross_entropy
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling


def test_it_is_that_of_the_plain_logits_behind_each_history(monkeypatch):
    torch.manual_seed(0)
    config = BERT4RecConfig(vocab_size=23, hidden_size=12, num_hidden_layers=2, output_bias=True)
    model = BERT4RecForMaskedItemModeling(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    histories = [np.array([5, 3]), np.array([7, 9, 22, 4]), np.array([11])]
    targets = np.array([9, 2, 22])
    losses = []
    for history, target in zip(histories, targets, strict=True):
        logits = model(torch.tensor([[*history, config.mask_token_id]])).logits[0, -1]
        losses.append(-logits.double().softmax(0).log()[target].item())
    monkeypatch.setattr(likelihood, "HISTORIES_AT_ONCE", 2)
    found = cross_entropy(ModelScorer(model), histories, targets)
    assert found == pytest.approx(np.mean(losses), abs=1e-5)
