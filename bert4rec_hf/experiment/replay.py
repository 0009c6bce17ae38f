"""One step of a run again, from the run's folder, to see what is wrong with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.training.agreement import from_main_process
from bert4rec_hf.training.bad_steps import describe_gradients, first_not_finite
from bert4rec_hf.training.checkpoint import find_checkpoints, find_whole
from bert4rec_hf.training.checksums import name_of_step
from bert4rec_hf.training.loop import TrainingRun, describe_batches
from bert4rec_hf.training.run_folder import open_output

from .build import build_loader, build_model, initialize
from .run import identify_run
from .spec import Experiment


def replay_step(
    experiment: Experiment, output: Path, accelerator: Accelerator, step: int
) -> list[str]:
    """Take the steps from the checkpoint before, and look at one without taking it.

    Checkpoints, model and results stay as they are.

    Args:
        experiment: That of the run.
        output: The run's folder.
        accelerator: As `build_accelerator` makes it.
        step: Counted from 1.

    Returns:
        Lines on what it read, its losses and gradients, and where the first number arose that is
        not finite.

    Raises:
        ValueError: The run has no such step, or another experiment; or a step before is bad.
    """
    if not 1 <= step <= experiment.training.max_steps:
        raise ValueError(
            f"--replay-step must be between 1 and training.max_steps, "
            f"{experiment.training.max_steps:,}, got {step:,}"
        )
    dataset = open_dataset(experiment.data.dataset)
    identity = identify_run(experiment, dataset, accelerator)
    with open_output(output, identity, accelerator, is_resumed=True):
        run = build_run(experiment, dataset, accelerator, output, before=step)
        first = run.state.step
        loader = build_loader(experiment, dataset, accelerator.num_processes, first)
        batches = iter(accelerator.prepare(loader))
        run.model.train()
        while run.state.step < step - 1:
            run.learn(next(batches))
            run.state.step += accelerator.sync_gradients
        run.guard.settle()
        begun = f"from {name_of_step(first)}" if first else "from the first step on"
        described = describe_batches(loader, accelerator, step).removeprefix("; it read ")
        accumulated = list(islice(batches, accelerator.gradient_accumulation_steps))
        return [f"step {step:,}, {begun}: {described}", *look_at_step(run, accumulated)]


def build_run(
    experiment: Experiment,
    dataset: PreparedDataset,
    accelerator: Accelerator,
    output: Path,
    before: int,
) -> TrainingRun:
    """Make the run as it was at its newest whole checkpoint before a step, or at its beginning."""
    model = build_model(experiment, dataset.vocab_size)
    initialize(model, dataset, experiment.training)
    run = TrainingRun(model, experiment.training, accelerator, output / "checkpoints")
    older = [
        path
        for path in find_checkpoints(output / "checkpoints")
        if path.name < name_of_step(before)
    ]
    if checkpoint := from_main_process(find_whole(older)[0]):
        run.resume(checkpoint)
    return run


def look_at_step(run: TrainingRun, batches: list[dict[str, Tensor]]) -> list[str]:
    """Say what comes of the batches of a step.

    Args:
        run: As the step found it.
        batches: Of this process.
    """
    lines = []
    if weight := first_not_finite(run.unwrapped):
        lines.append(f"{weight} is not finite before the step")
    for number, batch in enumerate(batches, start=1):
        with noting_first_not_finite(run.unwrapped) as places, run.accelerator.autocast():
            loss = run.model(**batch).loss
        run.accelerator.backward(loss / len(batches))
        where = f", first not finite after {places[0]}" if places else ""
        lines.append(
            f"batch {number} of {len(batches)}: {tuple(batch['input_ids'].shape)} ids from "
            f"{batch['input_ids'].min()} to {batch['input_ids'].max()}, loss {loss.item():g}{where}"
        )
    gradients = describe_gradients(run.unwrapped).removeprefix("; ")
    return [*lines, f"gradients: {gradients}"]


@contextmanager
def noting_first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Note the modules whose output is not finite, in the order in which they compute."""
    places: list[str] = []

    def note(name: str, output: object) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        tensors = [each for each in outputs if isinstance(each, Tensor)]
        if any(each.is_floating_point() and not each.isfinite().all() for each in tensors):
            places.append(name)

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield places
    finally:
        for hook in hooks:
            hook.remove()
