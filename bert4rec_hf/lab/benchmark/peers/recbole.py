"""RecBole's BERT4Rec, with the masking, the loss, the optimizer and the evaluation of its trainer.

Its `Config` and `Dataset` read files and the command line; a dict with the settings that they
would have found, and the size of the catalog, stand in for them.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import MaskItemSequence
from recbole.evaluator.collector import Collector
from recbole.model.sequential_recommender.bert4rec import BERT4Rec

from bert4rec_hf.lab.benchmark.task import (
    LEARNING_RATE,
    MASK_RATIO,
    Task,
    Work,
    default_device,
    hold_out_last,
    pad,
    refuse_flags,
)
from bert4rec_hf.lab.benchmark.workloads import draw_histories


class Catalog:
    """What the model asks of a dataset."""

    def __init__(self, num_items: int):
        self.num_items = num_items

    def num(self, field: str) -> int:
        """Count ids of a field: the items and the padding."""
        return self.num_items + 1


class RecBoleContestant:
    """Scores of the whole catalog at a fixed number of positions per history."""

    def __init__(self, task: Task):
        refuse_flags(task, "precision", "compile", "adapter")
        self.task, self.device = task, default_device()
        self.histories = draw_histories(task.workload, task.seed)
        shape, settings = task.shape, task.settings
        self.config = {
            "USER_ID_FIELD": "user",
            "ITEM_ID_FIELD": "item",
            "LIST_SUFFIX": "_list",
            "ITEM_LIST_LENGTH_FIELD": "length",
            "NEG_PREFIX": "neg_",
            "MAX_ITEM_LIST_LENGTH": task.workload.max_length,
            "device": self.device,
            "n_layers": shape.num_layers,
            "n_heads": shape.num_heads,
            "hidden_size": shape.hidden_size,
            "inner_size": 4 * shape.hidden_size,
            "hidden_dropout_prob": settings.dropout,
            "attn_dropout_prob": settings.attention_dropout,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "mask_ratio": MASK_RATIO,
            "loss_type": "CE",
            "initializer_range": 0.02,
            "metrics": ["Hit", "NDCG"],
            "topk": [10],
            "eval_args": {"mode": {"test": "full"}},
        }
        self.mask = MaskItemSequence(self.config)
        self.catalog = Catalog(task.workload.num_items)
        self.batches = self._batches()

    def build(self) -> None:
        torch.manual_seed(self.task.seed)
        self.model = BERT4Rec(self.config, self.catalog).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def train(self, batches: int) -> Work:
        self.model.train()
        items = 0
        for batch in islice(self.batches, batches):
            items += int(batch["length"].sum())
            self.optimizer.zero_grad()
            self.model.calculate_loss(batch.to(self.device)).backward()
            self.optimizer.step()
        return Work(batches * self.task.settings.batch_size, items)

    @torch.no_grad()
    def evaluate(self, batches: int) -> Work:
        self.model.eval()
        size = self.task.settings.batch_size
        histories, targets = hold_out_last(self.histories, batches * size)
        collector = Collector(self.config)
        for start in range(0, len(histories), size):
            batch = self._interaction(histories[start : start + size]).to(self.device)
            ids = torch.as_tensor(targets[start : start + size], dtype=torch.int64) - 1
            scores = self.model.full_sort_predict(batch)
            scores[:, 0] = -torch.inf
            collector.eval_batch_collect(scores, batch, torch.arange(len(ids)), ids)
        return Work(len(histories), sum(map(len, histories)))

    def collate(self, batches: int) -> Work:
        items = sum(int(batch["length"].sum()) for batch in islice(self.batches, batches))
        return Work(batches * self.task.settings.batch_size, items)

    def _batches(self) -> Iterator[Interaction]:
        """Mask batch after batch of rows that lie padded, as its dataset keeps them."""
        rows = self._interaction(list(self.histories))
        while True:
            for chosen in torch.randperm(len(rows)).split(self.task.settings.batch_size):
                if len(chosen) == self.task.settings.batch_size:
                    yield self.mask(self.catalog, rows[chosen])

    def _interaction(self, histories: list) -> Interaction:
        lengths = torch.tensor([len(history) for history in histories])
        # Its items are numbered from 1, ours from 2.
        rows = (pad(histories, self.task.workload.max_length) - 1).clamp(min=0)
        return Interaction({"item_list": rows, "length": lengths})
