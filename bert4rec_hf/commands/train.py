"""Train one experiment, keep the best model, measure it and write its card.

accelerate launch scripts/train.py configs/synthetic/bert4rec.yaml --output runs/synthetic

Any setting of the file can be overridden: --training.learning_rate 1e-3 --model.hidden_size 128.
A `base` section trains an existing model folder further; an `adapter` section adds an adapter.
Devices, mixed precision and torch.compile are chosen by the flags of accelerate launch.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .huge_pages import use_huge_pages
from .parser import command_parser

if TYPE_CHECKING:
    from accelerate import Accelerator

    from bert4rec_hf.experiment.spec import Experiment


def build_parser() -> argparse.ArgumentParser:
    """Offer what is not a setting of the experiment."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("config", type=Path, help="one file of configs/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--name", help="name of the run (default: that of the file)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument(
        "--refit",
        type=Path,
        metavar="RUN",
        help="train on a dataset without held-out data, for as many steps as that run's best model",
    )
    parser.add_argument(
        "--profile",
        type=int,
        nargs="?",
        const=5,
        default=0,
        metavar="STEPS",
        help="profile time and memory of STEPS steps (default: 5) into the run's profile/ folder",
    )
    parser.add_argument(
        "--ignore-memory-estimate",
        action="store_true",
        help="train even if a step is estimated not to fit into memory",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the whole dataset first, however large it is"
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="USER/NAME",
        help="publish the folder after evaluation; permission is checked before training",
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="make the repository private"
    )
    parser.add_argument(
        "--replay-step",
        type=int,
        metavar="STEP",
        help="repeat one step of the run and describe its loss and gradient",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, report."""
    parser = build_parser()
    options, settings = parser.parse_known_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bert4rec_hf").setLevel(logging.INFO)
    use_huge_pages()  # before torch is imported

    from bert4rec_hf.training.interruption import stopping_on_signals

    with stopping_on_signals(partial(advise, options.output)):  # from the first long import on
        from bert4rec_hf.hub.card import render_summary
        from bert4rec_hf.training.agreement import describe
        from bert4rec_hf.training.limits import describe_shortage

        try:
            if options.replay_step is not None:
                print("\n".join(replay(options, settings)))
                return
            experiment, accelerator, results = run(options, settings)
        except (OSError, ValueError) as error:
            parser.exit(2, f"error: {describe(error)}\n")
        except (MemoryError, RuntimeError) as error:
            if not (shortage := describe_shortage(error)):
                raise
            parser.exit(2, f"error: {shortage}\n")
    if accelerator.is_main_process:
        print(render_summary(results))
        folder = options.output / experiment.folder_name
        print(f"{experiment.folder_name} folder: {folder}")
        print(f"next: bert4rec recommend {folder} ITEM ITEM …")
        if options.push_to_hub:
            publish(parser, folder, options.push_to_hub)


def publish(parser: argparse.ArgumentParser, folder: Path, repository: str) -> None:
    """Push the trained folder; if that fails, say how to do it later."""
    from bert4rec_hf.hub.push import push

    try:
        print(f"pushed: {push(folder, repository)}")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}; then: bert4rec push {folder} {repository}\n")


def run(
    options: argparse.Namespace, settings: list[str]
) -> tuple["Experiment", "Accelerator", dict[str, Any]]:
    """Train and measure what the command line says.

    Returns:
        The experiment, what it ran on, and its results.
    """
    from accelerate.utils import set_seed
    from transformers.utils.logging import disable_progress_bar

    from bert4rec_hf.experiment.build import build_accelerator
    from bert4rec_hf.experiment.load import load_experiment
    from bert4rec_hf.experiment.run import run_experiment
    from bert4rec_hf.hub.dataset_repository import open_dataset
    from bert4rec_hf.hub.push import prepare_push
    from bert4rec_hf.training.run_folder import check_output

    disable_progress_bar()  # of transformers: folders load in a moment
    experiment = load_experiment(options.config, settings, options.name)
    check_output(options.output, is_resumed=options.resume)
    if options.verify:
        open_dataset(experiment.data.dataset, verify=True)
    accelerator = build_accelerator(experiment, options.output)
    if options.push_to_hub and accelerator.is_main_process:
        base = experiment.base.model if experiment.adapter else None
        prepare_push(options.push_to_hub, private=options.private, base=base)
    set_seed(experiment.training.seed, device_specific=True)
    results = run_experiment(
        experiment,
        options.output,
        accelerator,
        is_resumed=options.resume,
        profiled_steps=options.profile,
        ignores_memory=options.ignore_memory_estimate,
        refit=options.refit,
    )
    return experiment, accelerator, results


def replay(options: argparse.Namespace, settings: list[str]) -> list[str]:
    """Repeat the step named on the command line.

    Returns:
        Lines that describe it; none on other processes than the main one.
    """
    from accelerate.utils import set_seed

    from bert4rec_hf.experiment.build import build_accelerator
    from bert4rec_hf.experiment.load import load_experiment
    from bert4rec_hf.experiment.replay import replay_step
    from bert4rec_hf.training.run_folder import check_output

    experiment = load_experiment(options.config, settings, options.name)
    check_output(options.output, is_resumed=True)
    accelerator = build_accelerator(experiment, options.output)
    set_seed(experiment.training.seed, device_specific=True)
    lines = replay_step(experiment, options.output, accelerator, options.replay_step)
    return lines if accelerator.is_main_process else []


def advise(output: Path) -> str:
    """Say how to continue a run that was stopped."""
    if (output / "run.json").exists():
        return "the same command with --resume continues it"
    return "nothing was started; run the same command again"


if __name__ == "__main__":
    main()
