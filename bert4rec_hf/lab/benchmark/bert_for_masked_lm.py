"""The yardstick every user has at hand: transformers' BertForMaskedLM, used as its examples do.

Padded to the longest history of a batch, scores of the whole catalog at every position, the loss
from dense logits. Whatever accelerate can do for it by a flag (precision, compiler) is done.
"""

from itertools import islice

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.lab.benchmark.bert4rec import build_accelerator, count_items
from bert4rec_hf.lab.benchmark.task import (
    LEARNING_RATE,
    MASK_RATIO,
    Task,
    Work,
    endless,
    hold_out_last,
    pad,
    rank_by_comparison,
    refuse_flags,
)
from bert4rec_hf.lab.benchmark.workloads import FIRST_ITEM_ID, draw_histories

MASK_ID = 1


class BertForMaskedLMContestant:
    """BERT for words, given items."""

    def __init__(self, task: Task):
        refuse_flags(task, "adapter")
        self.task = task
        self.accelerator = build_accelerator(task)
        self.histories = draw_histories(task.workload, task.seed)
        vocabulary = build_vocabulary([str(item) for item in range(task.workload.num_items)])
        self.loader = DataLoader(
            [{"input_ids": history.tolist()} for history in self.histories],
            batch_size=task.settings.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=DataCollatorForLanguageModeling(vocabulary, mlm_probability=MASK_RATIO),
            num_workers=task.settings.num_workers,
        )

    def build(self) -> None:
        task, shape, settings = self.task, self.task.shape, self.task.settings
        set_seed(task.seed)
        config = BertConfig(
            vocab_size=task.workload.num_items + FIRST_ITEM_ID,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=4 * shape.hidden_size,
            max_position_embeddings=task.workload.max_length,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.attention_dropout,
            tie_word_embeddings=shape.tie_word_embeddings,
        )
        self.model = BertForMaskedLM(config)
        # The Trainer's default optimizer.
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.prepared, self.optimizer, loader = self.accelerator.prepare(
            self.model, optimizer, self.loader
        )
        self.batches = endless(loader)

    def train(self, batches: int) -> Work:
        self.prepared.train()
        items = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        for batch in islice(self.batches, batches):
            items += count_items(batch)
            self.accelerator.backward(self.prepared(**batch).loss)
            self.accelerator.clip_grad_norm_(self.prepared.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return Work(batches * self.task.settings.batch_size, items.item())

    @torch.no_grad()
    def evaluate(self, batches: int) -> Work:
        self.prepared.eval()
        size, device = self.task.settings.batch_size, self.accelerator.device
        histories, targets = hold_out_last(self.histories, batches * size)
        for start in range(0, len(histories), size):
            # The mask takes the place of the item held out.
            masked = [[*history, MASK_ID] for history in histories[start : start + size]]
            lengths = torch.tensor([len(history) for history in masked])
            input_ids = pad(masked, int(lengths.max())).to(device)
            logits = self.prepared(
                input_ids=input_ids, attention_mask=(input_ids != 0).long()
            ).logits  # (batch, length, vocab)
            scores = logits[torch.arange(len(masked)), lengths - 1]
            ids = torch.as_tensor(targets[start : start + size], dtype=torch.int64, device=device)
            rank_by_comparison(scores, ids).cpu()
        return Work(len(histories), sum(map(len, histories)))

    def collate(self, batches: int) -> Work:
        items = sum(map(count_items, islice(endless(self.loader), batches)))
        return Work(batches * self.task.settings.batch_size, items.item())
