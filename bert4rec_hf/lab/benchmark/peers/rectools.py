"""RecTools' BERT4Rec with its softmax loss, its data preparation and its optimizer."""

import warnings
from itertools import islice

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.lab.benchmark.task import (
    LEARNING_RATE,
    MASK_RATIO,
    Task,
    Work,
    default_device,
    endless,
    refuse_flags,
    to_device,
)
from bert4rec_hf.lab.benchmark.workloads import FIRST_ITEM_ID, draw_histories

warnings.filterwarnings("ignore", module="pytorch_lightning")  # it misses the trainer


class RecToolsContestant:
    """Padded to the longest history there is, with scores at every position."""

    def __init__(self, task: Task):
        refuse_flags(task, "precision", "compile", "adapter")
        self.task, self.device = task, default_device()
        self.dataset = Dataset.construct(
            interaction_frame(draw_histories(task.workload, task.seed), task.workload.num_items)
        )

    def build(self) -> None:
        shape, settings = self.task.shape, self.task.settings
        torch.manual_seed(self.task.seed)
        model = BERT4RecModel(
            n_blocks=shape.num_layers,
            n_heads=shape.num_heads,
            n_factors=shape.hidden_size,
            session_max_len=self.task.workload.max_length,
            dropout_rate=settings.dropout,
            mask_prob=MASK_RATIO,
            loss="softmax",
            lr=LEARNING_RATE,
            batch_size=settings.batch_size,
            dataloader_num_workers=settings.num_workers,
        )
        model._build_model_from_dataset(self.dataset)  # what its fit begins with
        self.model = model.lightning_model.to(self.device)
        self.optimizer = self.model.configure_optimizers()
        self.batches = endless(model.data_preparator.get_dataloader_train())

    def train(self, batches: int) -> Work:
        self.model.train()
        items = 0
        for index, batch in enumerate(islice(self.batches, batches)):
            items += int((batch["x"] != 0).sum())
            self.optimizer.zero_grad()
            self.model.training_step(to_device(batch, self.device), index).backward()
            self.optimizer.step()
        return Work(batches * self.task.settings.batch_size, items)


def interaction_frame(histories: Histories, num_items: int) -> pd.DataFrame:
    """Write histories as interactions, and the whole catalog as one more history.

    Its catalog is what it sees in the data.
    """
    users = np.repeat(np.arange(len(histories) + 1), [*histories.lengths, num_items])
    items = np.concatenate([histories.values, np.arange(num_items) + FIRST_ITEM_ID])
    return pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01")
            + pd.to_timedelta(np.arange(len(items)), unit="s"),
        }
    )
