import pytest

from bert4rec_hf.benchmark.task import Settings, Task
from bert4rec_hf.benchmark.workloads import Shape, Workload


@pytest.fixture(scope="session")
def tiny():
    """Make a task in which everything is small, for a contestant with settings of its own."""
    workload = Workload(
        name="tiny",
        num_items=97,
        min_length=3,
        mean_length=6.0,
        log_spread=1.0,
        max_length=11,
        zipf_exponent=0.7,
        num_histories=53,
    )
    shape = Shape(name="tiny", hidden_size=12, num_layers=2, num_heads=3)

    def make(contestant, **settings):
        settings = Settings(**{"batch_size": 7, "num_negatives": 5} | settings)
        return Task(contestant=contestant, workload=workload, shape=shape, settings=settings)

    return make
