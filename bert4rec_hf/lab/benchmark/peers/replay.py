"""RePlay's Bert4Rec with one of its losses, its datasets, its loader and its default optimizer."""

import warnings
from itertools import islice

import numpy as np
import polars as pl
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import (
    PolarsSequentialDataset,
    TensorFeatureInfo,
    TensorFeatureSource,
    TensorSchema,
)
from replay.models.nn.sequential.bert4rec import (
    Bert4Rec,
    Bert4RecPredictionDataset,
    Bert4RecTrainingDataset,
)
from torch.utils.data import DataLoader

from bert4rec_hf.lab.benchmark.task import (
    MASK_RATIO,
    Task,
    Work,
    default_device,
    endless,
    hold_out_last,
    rank_by_comparison,
    refuse_flags,
    to_device,
)
from bert4rec_hf.lab.benchmark.workloads import FIRST_ITEM_ID, draw_histories

# It announces the successors of these classes, and misses the trainer that it would log to.
warnings.filterwarnings("ignore")


class RePlayContestant:
    """Padded to the longest history there is; the loss looks at masked positions only."""

    def __init__(self, task: Task, loss_type: str, num_negatives: int | None = None):
        refuse_flags(task, "precision", "compile", "adapter")
        self.task, self.device = task, default_device()
        self.loss_type, self.num_negatives = loss_type, num_negatives
        self.histories = draw_histories(task.workload, task.seed)
        self.schema = TensorSchema(
            TensorFeatureInfo(
                name="item",
                is_seq=True,
                cardinality=task.workload.num_items,
                embedding_dim=task.shape.hidden_size,
                feature_type=FeatureType.CATEGORICAL,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
                feature_hint=FeatureHint.ITEM_ID,
            )
        )
        self.loader = DataLoader(
            Bert4RecTrainingDataset(
                self._sequential(list(self.histories)), task.workload.max_length, MASK_RATIO
            ),
            batch_size=task.settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=task.settings.num_workers,
        )

    def build(self) -> None:
        task, shape = self.task, self.task.shape
        torch.manual_seed(task.seed)
        self.model = Bert4Rec(
            self.schema,
            block_count=shape.num_layers,
            head_count=shape.num_heads,
            hidden_size=shape.hidden_size,
            max_seq_len=task.workload.max_length,
            dropout_rate=task.settings.dropout,
            enable_embedding_tying=shape.tie_word_embeddings,
            loss_type=self.loss_type,
            loss_sample_count=self.num_negatives,
            negatives_sharing=self.num_negatives is not None,
        ).to(self.device)
        self.optimizer = self.model.configure_optimizers()
        self.batches = endless(self.loader)

    def train(self, batches: int) -> Work:
        self.model.train()
        items = 0
        for index, batch in enumerate(islice(self.batches, batches)):
            items += int(batch["pad_mask"].sum())
            self.optimizer.zero_grad()
            self.model.training_step(to_device(batch, self.device), index).backward()
            self.optimizer.step()
        return Work(batches * self.task.settings.batch_size, items)

    @torch.no_grad()
    def evaluate(self, batches: int) -> Work:
        self.model.eval()
        size = self.task.settings.batch_size
        histories, targets = hold_out_last(self.histories, batches * size)
        dataset = Bert4RecPredictionDataset(
            self._sequential(histories), self.task.workload.max_length
        )
        parts = torch.as_tensor(targets, dtype=torch.int64).split(size)
        for batch, ids in zip(DataLoader(dataset, batch_size=size), parts, strict=True):
            scores = self.model.predict(to_device(batch, self.device))
            rank_by_comparison(scores, (ids - FIRST_ITEM_ID).to(self.device)).cpu()
        return Work(len(histories), sum(map(len, histories)))

    def collate(self, batches: int) -> Work:
        masked = islice(endless(self.loader), batches)
        items = sum(int(batch["pad_mask"].sum()) for batch in masked)
        return Work(batches * self.task.settings.batch_size, items)

    def _sequential(self, histories: list[np.ndarray]) -> PolarsSequentialDataset:
        """Lay histories out as it wants them, items numbered from 0."""
        columns = {
            "user": np.arange(len(histories)),
            "item": [(history - FIRST_ITEM_ID).tolist() for history in histories],
        }
        return PolarsSequentialDataset(self.schema, "user", "item", pl.DataFrame(columns))
