r"""Add new items and interactions to a trained model, in a fraction of the time of a training.

bert4rec update runs/shop/model --interactions orders.parquet --since 2026-09-15 \
    --output runs/shop/tuesday

Only interactions since the date are learned; earlier ones are context, so the file must contain
them. New items join the vocabulary. The gain is measured on the newest interactions, which are held
out.
"""

from collections.abc import Sequence
from pathlib import Path

from .interaction_options import add_interaction_options
from .parser import command_parser

LEARNING = {
    "replay": 0.1,
    "epochs": 3,
    "learning_rate": 5e-4,
    "item_learning_rate_factor": 5.0,
    "batch_size": 64,
    "held_out": 1_000,
    "seed": 0,
}
"""Settings of UpdateConfig and their defaults, here so that help needs no library."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, update, report."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", type=Path, help="a model folder")
    add(
        "--interactions",
        type=Path,
        required=True,
        help="parquet, csv or jsonl file of whole histories",
    )
    add(
        "--since",
        required=True,
        help="learn interactions from here on: unix seconds or ISO date, UTC",
    )
    add("--output", type=Path, required=True, help="model folder to write; must not exist")
    add(
        "--vectors",
        type=Path,
        help="parquet file with the columns item and vector, to initialize new items from",
    )
    add = parser.add_argument_group("learning").add_argument
    for name, default in LEARNING.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"default: {default}")
    add_interaction_options(parser)
    options = parser.parse_args(arguments)

    from transformers.utils.logging import disable_progress_bar

    from .shop.interactions import exit_on_bad_input
    from .shop.update import update

    disable_progress_bar()  # of transformers: folders load in a moment
    with exit_on_bad_input(parser):
        print(update(options, {name: getattr(options, name) for name in LEARNING}))
    print(f"model folder: {options.output}")


if __name__ == "__main__":
    main()
