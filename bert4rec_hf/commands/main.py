"""The command line: `bert4rec COMMAND …` runs the module of that name beside this one."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "prepare": "turn raw interactions into a prepared dataset",
    "recipe": "choose the settings for a prepared dataset",
    "plan": "say what training would take in memory and time",
    "train": "train or fine-tune one experiment, and measure it",
    "neighbors": "mix item neighbors into a trained model if they help",
    "evaluate": "measure a folder and the baselines, or compare several folders",
    "recommend": "recommend items for a history, or for all users of a shop",
    "embed": "write the vectors of users or items",
    "monitor": "measure a model in use on the newest interactions",
    "update": "add new items and interactions to a trained model",
    "export": "write a model as an ONNX file that recommends by itself",
    "serve": "serve a model over HTTP",
    "demo": "open a page to try a model",
    "tune": "search for the settings of an experiment",
    "scale": "train at several sizes and fit scaling laws",
    "ablate": "train with one change at a time",
    "push": "publish a folder on a model hub",
    "benchmark": "compare the cost of a training step with other libraries",
    "benchmark_prepare": "compare the cost of preparing a file with plain polars",
    "benchmark_serving": "compare the cost of recommending with plain matrix products",
    "report": "render the committed cards, tables and plots from their results",
}
"""In the order in which they are needed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: Of the command line; those of the process when None.
    """
    parser = argparse.ArgumentParser(
        prog="bert4rec",
        description="BERT4Rec: from interactions to recommendations.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<19}{purpose}" for name, purpose in COMMANDS.items())
        + "\n\nSee bert4rec COMMAND --help for details. On several devices: accelerate launch -m "
        "bert4rec_hf.commands.train …",
    )
    parser.add_argument("--version", action="version", version=version("bert4rec_hf"))
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below"
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given[:1])
    importlib.import_module(f".{options.command}", __package__).main(given[1:])


if __name__ == "__main__":
    main()
