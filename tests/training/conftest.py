from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.loop import TrainingRun

LENGTHS = np.array([3, 9, 5, 7, 4, 11, 6, 8, 10, 12, 5])
HISTORIES = Histories(
    np.concatenate([np.arange(2, 2 + length, dtype=np.int32) for length in LENGTHS]),
    np.array([0, *LENGTHS.cumsum()]),
)


def make_model(**settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "max_history_length": 8}
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def make_config(**settings):
    defaults = {
        "learning_rate": 0.01,
        "batch_size": 4,
        "max_steps": 12,
        "evaluation_steps": 3,
        "checkpoint_steps": 3,
        "logging_steps": 5,
        "trackers": [],
    }
    return TrainingConfig(**defaults | settings)


def make_loader(config, first_step=0, **settings):
    sampler = ViewBatchSampler(
        LENGTHS,
        batch_size=config.batch_size,
        num_batches=config.max_steps * config.gradient_accumulation_steps,
        seed=config.seed,
        first_batch=first_step * config.gradient_accumulation_steps,
    )
    return DataLoader(
        TrainingViews(HISTORIES),
        batch_sampler=sampler,
        collate_fn=MaskedItemCollator(max_history_length=8, mask_ratio=0.4),
        generator=torch.Generator(),
        **settings,
    )


def make_run(folder, config, teachers=None, **settings):
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps, cpu=True
    )
    return TrainingRun(make_model(**settings), config, accelerator, folder, teachers)


def weights(run):
    return {name: weight.detach().clone() for name, weight in run.unwrapped.named_parameters()}


@pytest.fixture(scope="session")
def small():
    """A training in which everything is small: its histories, and what makes its parts."""
    return SimpleNamespace(
        histories=HISTORIES,
        lengths=LENGTHS,
        make_config=make_config,
        make_loader=make_loader,
        make_model=make_model,
        make_run=make_run,
        weights=weights,
        constant=lambda model: {"ndcg@10": 0.5},
        ignore=lambda model: None,
    )
