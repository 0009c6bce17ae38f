r"""Take new items and new interactions into a trained model, in a fraction of a training's time.

bert4rec update runs/shop/model --interactions orders.parquet --since 2026-09-15 \
    --output runs/shop/tuesday

Only what happened since the date is learned; histories before it are context, so the file must hold
them. New items join the vocabulary. What it was worth is measured on the newest interactions.
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
    add("--interactions", type=Path, required=True, help="parquet, csv or jsonl, whole histories")
    add("--since", required=True, help="what is learned: unix seconds or ISO date, UTC")
    add("--output", type=Path, required=True, help="the model folder to write, must be new")
    add("--vectors", type=Path, help="parquet of item and vector, to initialize new items by")
    add = parser.add_argument_group("how it is learned").add_argument
    for name, default in LEARNING.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"{default} if not given")
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
