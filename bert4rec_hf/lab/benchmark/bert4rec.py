"""This project's model as a contestant, made of the very parts that training is made of."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin, set_seed
from peft import PeftConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.evaluation import EvaluationConfig, rank_histories
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.lab.benchmark.task import (
    LEARNING_RATE,
    MASK_RATIO,
    Settings,
    Task,
    Work,
    hold_out_last,
)
from bert4rec_hf.lab.benchmark.workloads import FIRST_ITEM_ID, draw_histories
from bert4rec_hf.modeling import (
    SAMPLED_OBJECTIVES,
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
)
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.tuners import TUNERS


def build_accelerator(task: Task) -> Accelerator:
    """Launch as `accelerate launch` does with flags for precision and compiler."""
    is_dynamic = task.settings.pad_to_multiple_of == 1
    plugin = TorchDynamoPlugin(backend=task.settings.compile, dynamic=is_dynamic)
    return Accelerator(mixed_precision=task.settings.precision, dynamo_plugin=plugin)


def build_loader(task: Task, *, is_sampled: bool) -> DataLoader:
    """Read masked batches of the workload, more of them than a benchmark can take."""
    workload, settings = task.workload, task.settings
    histories = draw_histories(workload, task.seed)
    popularity = np.bincount(histories.values, minlength=workload.num_items + FIRST_ITEM_ID)
    negatives = NegativeSampler(popularity, settings.num_negatives, settings.negative_distribution)
    collator = MaskedItemCollator(
        max_history_length=workload.max_length,
        mask_ratio=MASK_RATIO,
        last_item_ratio=0.0,
        prefix_view_ratio=settings.prefix_view_ratio,
        prefix_ratio=settings.prefix_ratio,
        pad_to_multiple_of=settings.pad_to_multiple_of,
        negatives=negatives if is_sampled else None,
    )
    sampler = ViewBatchSampler(
        histories.lengths, batch_size=settings.batch_size, num_batches=2**40, seed=task.seed
    )
    return DataLoader(
        TrainingViews(histories),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=settings.num_workers,
    )


def build_config(task: Task, objective: str) -> BERT4RecConfig:
    """Make the modern network of the task's shape for the task's catalog."""
    shape, settings = task.shape, task.settings
    # A prefix view has no one newest item to count positions from.
    positions = (
        {"position_type": "rotary"} if settings.prefix_view_ratio else {"position_origin": "newest"}
    )
    return BERT4RecConfig(
        vocab_size=task.workload.num_items + FIRST_ITEM_ID,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        max_history_length=task.workload.max_length,
        **positions,
        norm_first=True,
        output_transform=False,
        output_bias=False,
        tie_word_embeddings=shape.tie_word_embeddings,
        objective=objective,
        hidden_dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )


def build_adapter(settings: Settings) -> PeftConfig:
    """Shape of the adapter that a contestant trains in place of the whole model."""
    targets = None if settings.adapter_targets == "default" else settings.adapter_targets
    pair = {"r": settings.r, "lora_dropout": settings.adapter_dropout}
    if settings.adapter == "ia3":
        # Where it scales the inputs of a layer and not the outputs.
        pair = {"feedforward_modules": ["down_proj"]} if targets else {}
    return TUNERS[settings.adapter](target_modules=targets, **pair)


class BERT4RecContestant:
    """Ours, with one of its objectives; the whole model, or an adapter on a frozen one."""

    def __init__(self, task: Task, objective: str):
        self.task, self.objective = task, objective
        self.accelerator = build_accelerator(task)
        self.loader = build_loader(task, is_sampled=objective in SAMPLED_OBJECTIVES)
        self.masked = iter(self.loader)

    def build(self) -> None:
        set_seed(self.task.seed)
        self.model = BERT4RecForMaskedItemModeling(build_config(self.task, self.objective))
        if self.task.settings.adapter != "none":
            self.model = get_peft_model(self.model, build_adapter(self.task.settings))
        elif self.objective in SAMPLED_OBJECTIVES:
            self.model.use_row_gradients()
        training = TrainingConfig(learning_rate=LEARNING_RATE, schedule="constant")
        self.run = TrainingRun(self.model, training, self.accelerator, folder=Path())
        self.batches = iter(self.accelerator.prepare(self.loader))

    def train(self, batches: int) -> Work:
        self.run.model.train()
        items = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        for batch in islice(self.batches, batches):
            items += count_items(batch)
            self.run.learn(batch)
        return Work(batches * self.task.settings.batch_size, items.item())

    def evaluate(self, batches: int) -> Work:
        scorer = ModelScorer(self.run.unwrapped.eval())
        size = self.task.settings.batch_size
        histories, targets = hold_out_last(self.loader.dataset.histories, batches * size)
        rank_histories(scorer, histories, targets, EvaluationConfig(ks=[10], batch_size=size))
        return Work(len(histories), sum(map(len, histories)))

    def collate(self, batches: int) -> Work:
        items = sum(map(count_items, islice(self.masked, batches)))
        return Work(batches * self.task.settings.batch_size, items.item())


def count_items(batch: dict[str, Tensor]) -> Tensor:
    """Count the items of a batch where it lies, so that no device is waited for.

    Returns:
        Scalar; what only fills the batch up is not counted.
    """
    return batch["input_ids"].count_nonzero()  # padding is 0
