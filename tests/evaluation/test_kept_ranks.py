import numpy as np
import pytest

from bert4rec_hf.evaluation import BASELINES, EvaluationConfig, evaluate_in_detail
from bert4rec_hf.evaluation.kept_ranks import KeptRanks

CONFIG = EvaluationConfig(ks=[3, 10], batch_size=16, num_bootstrap_samples=20)
IDENTITY = {"weights": "abc", "ks": [3, 10]}


class Counting:
    """A baseline that knows how many histories it has read, and is killed after so many."""

    def __init__(self, histories, max_read=10**9):
        self.scorer = BASELINES["item_knn"](histories, 97)
        self.vocab_size, self.num_read, self.max_read = 97, 0, max_read

    def encode(self, histories):
        if self.num_read >= self.max_read:
            raise KeyboardInterrupt
        self.num_read += len(histories)
        return self.scorer.encode(histories)

    def score(self, encoded, start, stop):
        return self.scorer.score(encoded, start, stop)


@pytest.fixture
def split(monkeypatch):
    monkeypatch.setattr("bert4rec_hf.evaluation.shared_ranking.HISTORIES_APART", 40)
    generator = np.random.default_rng(4)
    histories = [generator.integers(2, 97, size) for size in generator.integers(1, 9, 201)]
    return histories, generator.integers(2, 97, 201)


def measure(scorer, split, kept=None):
    return evaluate_in_detail(scorer, *split, CONFIG, np.arange(97), kept)


def test_an_evaluation_that_was_killed_goes_on_and_finds_the_same(split, tmp_path):
    expected = measure(Counting(split[0]), split)
    folder = tmp_path / "ranks"
    with pytest.raises(KeyboardInterrupt):
        measure(Counting(split[0], 120), split, KeptRanks(folder, IDENTITY).of("model-test"))
    scorer, kept = Counting(split[0]), KeptRanks(folder, IDENTITY)
    found = measure(scorer, split, kept.of("model-test"))
    assert scorer.num_read == 201 - 96  # two files of three batches each
    assert found.to_dict() == expected.to_dict()
    assert found.ranks.equal(expected.ranks)
    other = Counting(split[0])
    measure(other, split, kept.of("item_knn-test"))
    assert other.num_read == 201
    kept.remove()
    assert not folder.exists()


def test_ranks_of_another_evaluation_are_refused(split, tmp_path):
    measure(Counting(split[0]), split, KeptRanks(tmp_path / "ranks", IDENTITY).of("model-test"))
    with pytest.raises(ValueError, match="of an evaluation with weights 'abc', and it is 'def' no"):
        KeptRanks(tmp_path / "ranks", IDENTITY | {"weights": "def"})


def test_a_small_evaluation_writes_nothing(tmp_path):
    histories = [np.array([2, 3]), np.array([4])]
    kept = KeptRanks(tmp_path / "ranks", IDENTITY)
    measure(Counting(histories), (histories, np.array([5, 6])), kept.of("model-test"))
    kept.remove()
    assert list(tmp_path.iterdir()) == []
