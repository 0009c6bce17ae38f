"""Measure a model in use on the newest interactions; compare with its test and the baselines.

bert4rec monitor runs/shop/model --interactions yesterday.parquet --history orders.parquet
bert4rec monitor runs/shop/model --interactions orders.parquet --since 2026-09-15

Each new interaction is ranked given everything its user did before it. Earlier interactions come
from --history (only those older than the new ones count), or from the same file before --since.
"""

from collections.abc import Sequence
from pathlib import Path

from .interaction_options import add_interaction_options
from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, report."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", help="a model or adapter folder, or the name of a repository on a hub")
    add(
        "--interactions",
        type=Path,
        required=True,
        help="parquet, csv or jsonl file of the new interactions",
    )
    add("--history", type=Path, help="file of the earlier interactions, in the same format")
    add("--since", help="interactions from here on are new: unix seconds or ISO date, UTC")
    add("-k", type=int, default=10, help="metrics count the first K places")
    add("--output", type=Path, help="write all measurements to a JSON file")
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
