"""Recommend items for one history, or for all users of a file of interactions.

bert4rec recommend runs/shop/model item-003 item-007
bert4rec recommend runs/shop/model --interactions orders.parquet -k 20 --output recs/

The second form writes parquet files with the columns user, rank, item, score and title.
accelerate launch scripts/recommend.py … divides the users among processes; the output is
bit-identical for any number of them. The same command resumes after it was killed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bert4rec_hf.serving.choices import COLD_HISTORIES, UNKNOWN_ITEMS, USERS_PER_PART

from .interaction_options import add_interaction_options
from .parser import command_parser


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", help="a model or adapter folder, or the name of a repository on a hub")
    add("items", nargs="*", help="the history: raw items, oldest first")
    add("-k", type=int, default=10, help="how many items to recommend")
    add("--candidates", type=Path, help="txt, csv or parquet file of the only items to recommend")
    add(
        "--exclude",
        type=Path,
        help="file of items never to recommend; with a column user, for that user only",
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument(
        "--include-seen", action="store_true", help="also recommend items of the history"
    )
    seen.add_argument(
        "--exclude-seen",
        action="store_true",
        help="recommend only items that are not in the history (default)",
    )
    add(
        "--cold",
        choices=COLD_HISTORIES,
        help="what to recommend to users without known items (default: mask)",
    )
    add(
        "--unknown",
        choices=UNKNOWN_ITEMS,
        help="what to do with unknown items (default: error for one history, else skip)",
    )
    add = parser.add_argument_group("all users of a file").add_argument
    add(
        "--interactions",
        type=Path,
        help="parquet, csv or jsonl file with the columns user, item and timestamp",
    )
    add(
        "--users",
        type=Path,
        help="txt, csv or parquet file of the users to recommend to (default: all)",
    )
    add("--output", type=Path, help="folder of the parquet files")
    add(
        "--users-per-file",
        type=int,
        default=USERS_PER_PART,
        help="users per output file, roughly; fewer need less memory",
    )
    add_interaction_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, recommend, report."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if bool(options.items) == bool(options.interactions):
        parser.error("give either the items of a history, or --interactions with --output")
    if bool(options.interactions) != bool(options.output):
        parser.error("--interactions needs --output, the folder to write, and the other way round")

    from transformers.utils.logging import disable_progress_bar

    from .shop.interactions import exit_on_bad_input
    from .shop.recommend import recommend_to_all, recommend_to_one

    disable_progress_bar()  # of transformers: folders load in a moment
    with exit_on_bad_input(parser):
        (recommend_to_all if options.interactions else recommend_to_one)(options)


if __name__ == "__main__":
    main()
