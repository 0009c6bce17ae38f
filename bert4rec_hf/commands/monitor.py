"""Measure a model in use on the newest interactions, beside its test and the baselines.

bert4rec monitor runs/shop/model --interactions yesterday.parquet --history orders.parquet
bert4rec monitor runs/shop/model --interactions orders.parquet --since 2026-09-15

Each new interaction is ranked after everything that its user did before it. The history is what
came before: another file, of which only what is older counts, or the same file before --since.
"""

from collections.abc import Sequence
from pathlib import Path

from .interaction_options import add_interaction_options
from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, report."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", help="a model or adapter folder, or the name of one on a hub")
    add("--interactions", type=Path, required=True, help="parquet, csv or jsonl of what is new")
    add("--history", type=Path, help="the same of what came before")
    add("--since", help="what is new in the file: unix seconds or ISO date, UTC")
    add("-k", type=int, default=10, help="how many of the first places count")
    add("--output", type=Path, help="a JSON file for everything measured")
    add_interaction_options(parser)
    options = parser.parse_args(arguments)

    from transformers.utils.logging import disable_progress_bar

    from .shop.interactions import exit_on_bad_input
    from .shop.monitor import measure

    disable_progress_bar()  # of transformers: folders load in a moment
    with exit_on_bad_input(parser):
        print(measure(options))


if __name__ == "__main__":
    main()
