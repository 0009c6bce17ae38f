"""One loop: from scratch or fine-tuning, on one device or many."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.training.agreement import StopAgreement, describe, failing_together
from bert4rec_hf.training.bad_steps import StepGuard, spread_to_gradients
from bert4rec_hf.training.checkpoint import (
    TrainingState,
    check_finite,
    load_checkpoint,
    save_checkpoint,
)
from bert4rec_hf.training.gradients import (
    average_rows,
    clip_gradients,
    copy_from_main_process,
    leave_out_of_ddp,
)
from bert4rec_hf.training.interruption import Interrupted, deferring_signals
from bert4rec_hf.training.item_shards import ItemShards, ShardedScorerModel, check_item_shards
from bert4rec_hf.training.optimizer import build_optimizer, learning_rate, row_tables
from bert4rec_hf.training.progress import show_progress
from bert4rec_hf.training.sharding import (
    gather_model,
    is_sharded,
    outline,
    prepare_shares,
    shard_model,
)
from bert4rec_hf.training.teachers import Batch, Teachers

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

NOTABLE_RISE = {"constant": 0.01, "linear": 0.05, "cosine": 0.05}
"""Share of the metric, by schedule, beyond what the last fifth of the steps gives anyway."""
# A rate that falls to zero brings 1.2 % on the synthetic default, and 2.8 % on Beauty.

MOST_ROWS = 20
"""Histories of a batch that a message names."""


class TrainingRun:
    """A model on its way from its first step to its best, on whatever accelerate was launched with.

    Args:
        model: Any module whose forward takes a batch and returns an output with a `loss`.
        config: How long, how fast, how often to validate.
        accelerator: Made with the config's accumulation steps and trackers.
        folder: Where checkpoints go.
        teachers: What they expect is learned, too, if there are any.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        accelerator: Accelerator,
        folder: Path,
        teachers: Teachers | None = None,
    ):
        self.config = config
        self.teachers = teachers
        self.accelerator = accelerator
        self.folder = folder
        self.state = TrainingState()
        self.is_sharded = is_sharded(accelerator)
        self.items: ItemShards | None = None
        if check_item_shards(model, config, accelerator):
            self.items = ItemShards(model, accelerator)
        if self.is_sharded:
            self.outline = outline(model)
            shard_model(model, accelerator)
        self.tables = row_tables(model) if self.items is None else []
        is_compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        # The gradients of a compiled model are dense.
        tables = self.tables if self.items is None else self.items.weights
        leave_out_of_ddp(model, [] if is_compiled else tables)
        # The schedule is a function of the step and is not prepared: a prepared one would advance
        # once per process at every step.
        prepare = prepare_shares if self.is_sharded else Accelerator.prepare
        self.model, self.optimizer = prepare(accelerator, model, build_optimizer(model, config))
        copy_from_main_process(self.tables)
        self.stop = StopAgreement(accelerator)
        self.guard = StepGuard(self.unwrapped, config.on_bad_step == "skip", accelerator)

    @property
    def unwrapped(self) -> nn.Module:
        """The model without what DDP and torch.compile put around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def whole(self) -> nn.Module:
        """The model with all its weights, to be saved; a copy where it is sharded.

        Of an item table that is sharded only the main process has all rows.
        """
        if self.items is not None:
            return self.items.gather()
        return gather_model(self.outline, self.unwrapped) if self.is_sharded else self.unwrapped

    def resume(self, checkpoint: Path) -> None:
        """Go on from a folder of `find_checkpoints`."""
        self.state = load_checkpoint(checkpoint, self.unwrapped, self.optimizer, self.accelerator)

    def train(
        self,
        loader: DataLoader,
        evaluate: Callable[[nn.Module], Metrics] | None,
        keep_best: Callable[[nn.Module], None],
        on_step: Callable[[], None] = lambda: None,
    ) -> TrainingState:
        """Step, validate and checkpoint until the steps or the patience are used up.

        Args:
            loader: The batches that are still to come.
            evaluate: Validation metrics of the whole model, the same on every process; None where
                nothing is held out, and what is kept is the newest.
            keep_best: Called with the whole model whenever it is the best so far.
            on_step: Called after every optimizer step.

        Raises:
            Interrupted: A signal asked to stop, and a checkpoint was written.
            ValueError: A step or a weight is not finite.
            OSError: The last checkpoint could not be written.
        """
        with deferring_signals():
            if self._owes_validation():  # stopped between a step and its validation
                self._validate(evaluate, keep_best)
            if not self._is_over():
                self._take_steps(loader, evaluate, keep_best, on_step)
        self._judge_end()
        return self.state

    def _take_steps(
        self,
        loader: DataLoader,
        evaluate: Callable[[nn.Module], Metrics] | None,
        keep_best: Callable[[nn.Module], None],
        on_step: Callable[[], None],
    ) -> None:
        """Take the arguments of `train`."""
        state = self.state
        self.guard.describe_batches = partial(describe_batches, loader, self.accelerator)
        progress = show_progress(
            self.config.max_steps,
            "step",
            initial=state.step,
            is_shown=self.accelerator.is_main_process,
        )
        pace = _Pace(state)
        num_histories = loader.batch_sampler.batch_size * self.accelerator.num_processes
        self.model.train()
        with progress:
            for batch in self.accelerator.prepare(loader):
                pace.add(self.learn(batch), num_histories)
                if not self.accelerator.sync_gradients:
                    continue
                state.step += 1
                progress.update()
                pace.stop()
                on_step()
                if self._is_due(self.config.logging_steps):
                    self._log(pace, progress)
                self._stop_if_asked()
                self._validate_and_save(evaluate, keep_best)
                if self._is_over():
                    break
                pace.start()
        self.stop.settle()

    def learn(self, batch: Batch) -> Tensor:
        """Learn from one batch; step where accumulation is complete. Returns the loss."""
        with self.accelerator.accumulate(self.model):
            with self.items.fetched(batch) if self.items else nullcontext(batch) as inputs:
                with self.accelerator.autocast():  # what is sharded does not do so by itself
                    inputs = self.teachers(inputs) if self.teachers else inputs
                    loss = self.model(**inputs).loss
                self.accelerator.backward(spread_to_gradients(loss))
            self.guard.add(loss)
            is_allowed = True
            if self.accelerator.sync_gradients:
                average_rows(self.tables, self.accelerator)
                weights = list(self.model.parameters())
                norm = clip_gradients(weights, self.config.max_grad_norm, self.accelerator)
                is_allowed = self.guard.allows(norm, self.state)
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * learning_rate(self.state.step, self.config)
            # A scaler skips the step itself, and must be asked to in order to go on.
            if is_allowed or self.accelerator.scaler is not None:
                self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _is_over(self) -> bool:
        is_patience_over = self.state.validations_since_best >= self.config.patience
        return is_patience_over or self.state.step >= self.config.max_steps

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.max_steps

    def _owes_validation(self) -> bool:
        """Whether the step that was taken last is to be judged, and is not."""
        last = self.state.validations[-1]["step"] if self.state.validations else 0
        return last < self.state.step and self._is_due(self.config.evaluation_steps)

    def _stop_if_asked(self) -> None:
        """Save what there is, and raise `Interrupted` on all processes, if one was told to stop."""
        if number := self.stop.number():
            self.guard.settle()
            self._save_checkpoint(is_last=True)
            raise Interrupted(number, f"after step {self.state.step:,}")

    def _validate_and_save(
        self,
        evaluate: Callable[[nn.Module], Metrics] | None,
        keep_best: Callable[[nn.Module], None],
    ) -> None:
        """Do what is due after a step."""
        if any(map(self._is_due, (self.config.evaluation_steps, self.config.checkpoint_steps))):
            self.guard.settle()
        if self._owes_validation():
            self._validate(evaluate, keep_best)
            self.model.train()
        if self._is_over() or self._is_due(self.config.checkpoint_steps):
            self._save_checkpoint(is_last=self._is_over())

    def _log(self, pace: "_Pace", progress: tqdm) -> None:
        """Send loss and throughput since the last call to progress bar and trackers."""
        loss = self.accelerator.reduce(torch.stack(pace.losses).mean(), "mean").item()
        histories_per_second = pace.histories / pace.seconds
        pace.reset()
        progress.set_postfix(
            loss=f"{loss:.4f}",
            histories_per_s=f"{histories_per_second:.0f}",
            best=f"{self.state.best_metric:.4f}" if self.state.validations else "–",
        )
        self._track(
            {
                "train/loss": loss,
                "train/histories_per_second": histories_per_second,
                "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            }
        )

    def _track(self, values: dict[str, float]) -> None:
        with going_on_without_trackers(self.accelerator):
            self.accelerator.log(values, step=self.state.step)

    def _validate(
        self,
        evaluate: Callable[[nn.Module], Metrics] | None,
        keep_best: Callable[[nn.Module], None],
    ) -> None:
        """Judge the model by its validation metrics and keep it if it is the best so far."""
        state = self.state
        model = self.whole() if self.items is None else ShardedScorerModel(self.items)
        if evaluate is None:
            self._keep(model, keep_best)
            return
        try:
            # One process is free to leave it; several would wait for each other.
            with deferring_signals(is_deferred=self.accelerator.num_processes > 1):
                metrics = evaluate(model)
        except Interrupted as interrupted:
            self._save_checkpoint(is_last=True)
            raise Interrupted(interrupted.number, f"after step {state.step:,}") from None
        self._track({f"validation/{name}": value for name, value in metrics.items()})
        metric = metrics[self.config.metric]
        state.validations.append({"step": state.step, **metrics})
        state.validations_since_best += 1
        if metric > state.best_metric:
            state.best_metric, state.best_step, state.validations_since_best = metric, state.step, 0
            self._keep(model, keep_best)

    def _keep(self, model: nn.Module, keep_best: Callable[[nn.Module], None]) -> None:
        """Keep what was validated, with all its weights."""
        model = model if self.items is None else self.whole()
        with failing_together(self.accelerator):
            check_finite(dict(model.named_parameters()), self.state.step)
        keep_best(model)

    def _judge_end(self) -> None:
        """Warn where validation was still improving."""
        if not self.state.validations:
            return
        metric, max_steps = self.config.metric, self.config.max_steps
        notable = NOTABLE_RISE[self.config.schedule]
        self.state.still_improving = still_improving(self.state.validations, metric)
        if self.state.still_improving > notable and self.accelerator.is_main_process:
            logger.warning(
                "validation was still improving when training ended: %s gained %.1f %% in the last "
                "fifth of the steps and was best at the end; this model is undertrained, raise "
                "training.max_steps (now %s)",
                metric,
                100 * self.state.still_improving,
                f"{max_steps:,}",
            )

    def _save_checkpoint(self, *, is_last: bool) -> None:
        """Write a checkpoint; where there is no room for it, try again when the next one is due.

        Raises:
            OSError: It is the last one, and could not be written.
        """
        try:
            save_checkpoint(
                self.folder,
                self.unwrapped,
                self.optimizer,
                self.state,
                self.accelerator,
                self.config.keep_checkpoints,
            )
        except OSError as error:
            step = f"{self.state.step:,}"
            text = f"the checkpoint of step {step} could not be written: {describe(error)}"
            if is_last:
                raise OSError(f"{text}; fix that, and continue with --resume") from error
            if self.accelerator.is_main_process:
                logger.warning("%s; training continues, and tries again at the next one", text)


@contextmanager
def going_on_without_trackers(accelerator: Accelerator) -> Iterator[None]:
    """Leave the trackers out from the first time on that one cannot write what it is given."""
    try:
        yield
    except OSError as error:
        logger.warning("%s; training continues without tracking", describe(error))
        accelerator.trackers.clear()


def describe_batches(loader: DataLoader, accelerator: Accelerator, step: int) -> str:
    """Say which batches a step reads, and which histories of the training split each one holds.

    Args:
        loader: Not prepared; its batch sampler numbers the batches of all processes and steps.
        accelerator: Knows how many batches a step has.
        step: Counted from 1.
    """
    per_step = accelerator.gradient_accumulation_steps * accelerator.num_processes
    numbers = range((step - 1) * per_step, step * per_step)
    texts = []
    for number in numbers:
        rows = loader.batch_sampler.batch(number)["row"].tolist()
        more = ", …" if len(rows) > MOST_ROWS else ""
        texts.append(f"{number} (histories {', '.join(map(str, rows[:MOST_ROWS]))}{more})")
    return f"; it read {'batch' if per_step == 1 else 'batches'} {', '.join(texts)}"


def still_improving(validations: list[Metrics], metric: str) -> float:
    """Share of the metric that came in the last fifth of the steps, if the last validation is best.

    >>> earlier = [{"step": 4, "ndcg@10": 0.2}, {"step": 9, "ndcg@10": 0.1}]
    >>> round(still_improving([*earlier, {"step": 10, "ndcg@10": 0.25}], "ndcg@10"), 3)
    0.2

    Returns:
        Share of the best metric; 0 if it was reached before, or nothing was seen before.
    """
    last = validations[-1]
    values = [each[metric] for each in validations]
    before = [each[metric] for each in validations if each["step"] <= 0.8 * last["step"]]
    if not before or last[metric] <= 0 or last[metric] < max(values):
        return 0.0
    return 1 - max(before) / last[metric]


class _Pace:
    """Losses, histories and stepping time since the last log."""

    def __init__(self, state: TrainingState):
        self.state = state
        self.started = time.perf_counter()
        self.reset()

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.histories = 0
        self.seconds = 0.0

    def add(self, loss: Tensor, histories: int) -> None:
        self.losses.append(loss)
        self.histories += histories
        self.state.histories += histories

    def stop(self) -> None:
        """Count the time until now; what follows, until `start`, is not stepping."""
        elapsed = time.perf_counter() - self.started
        self.seconds += elapsed
        self.state.train_seconds += elapsed

    def start(self) -> None:
        self.started = time.perf_counter()
