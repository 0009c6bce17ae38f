import numpy as np
import pytest
import torch

from bert4rec_hf.serving.candidates import CandidateScorer


class Counting(CandidateScorer):
    """Remembers the spans that were scored."""

    def score(self, encoded, start, stop):
        self.spans.append(stop - start)
        return super().score(encoded, start, stop)


@pytest.mark.parametrize(("rows", "products"), [(1, 1), (256, 3)])
def test_one_history_is_scored_in_one_product_and_many_in_chunks(rows, products):
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(20_002, 3, generator=generator)
    states = torch.randn(rows, 3, generator=generator)
    scorer = Counting(weight, None)
    scorer.spans = []
    ids, scores = scorer.best(states, 5)
    assert (len(scorer.spans), sum(scorer.spans)) == (products, 20_000)
    expected = np.sort((states @ weight[2:].T).numpy(), axis=1)[:, :-6:-1]
    assert scores.numpy() == pytest.approx(expected, abs=1e-5)
    gathered = (states.unsqueeze(1) * weight[ids]).sum(-1)
    assert gathered.numpy() == pytest.approx(expected, abs=1e-5)
