"""What the commands of studies share: a file, a folder, and one process per worker."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .huge_pages import use_huge_pages
from .parser import command_parser


def study_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a study's command; arguments as those of command_parser."""
    parser = command_parser(module, description)
    parser.add_argument("config", type=Path, help="YAML file of the study, in configs/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    return parser


def check_worker() -> None:
    """Refuse to run as several processes, since each worker is one process.

    Raises:
        ValueError: There are several.
    """
    logging.basicConfig(format="%(message)s")
    use_huge_pages()  # before torch is imported

    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: folders load in a moment
    if (processes := PartialState().num_processes) > 1:
        raise ValueError(
            f"a worker is one process, got {processes}; start the command several times instead"
        )


def report_study(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    settings: Sequence[str],
    steps: tuple[Callable[..., Any], Callable[..., Any], Callable[..., str]],
) -> None:
    """Train what is not trained yet, and print the results as Markdown.

    Args:
        parser: Reports what is wrong.
        options: As it parsed them.
        settings: `--section.setting value` pairs, over the file's.
        steps: What reads the file, what trains into a folder, and what renders the results by name.
    """
    from bert4rec_hf.training.interruption import stopping_on_signals

    load, run, render = steps
    try:
        check_worker()
        with stopping_on_signals(lambda: "the same command continues it"):
            study = load(options.config, settings)
            results = run(study, options.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{render(study.name, results)}\nresults: {options.output / f'{study.kind}.json'}")
