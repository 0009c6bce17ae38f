"""Recommend items for one history, or for all users of a file of interactions.

bert4rec recommend runs/shop/model item-003 item-007
bert4rec recommend runs/shop/model --interactions orders.parquet -k 20 --output recs/

The second form writes parquet files to the folder: user, rank, item, score and title in each row.
accelerate launch scripts/recommend.py … shares the users out among processes, and the output is the
same to the bit for any number of them. After a kill the same command goes on where it was.
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
    add("model", help="a model or adapter folder, or the name of one on a hub")
    add("items", nargs="*", help="the history: raw items, oldest first")
    add("-k", type=int, default=10, help="how many items to recommend")
    add("--candidates", type=Path, help="txt, csv or parquet of the only items to recommend")
    add("--exclude", type=Path, help="the same of items to leave out; with a column user, for that")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--include-seen", action="store_true", help="items of the history, too")
    seen.add_argument("--exclude-seen", action="store_true", help="the default: new items only")
    add("--cold", choices=COLD_HISTORIES, help="for users without known items; mask if not given")
    add("--unknown", choices=UNKNOWN_ITEMS, help="items; error for one history, else skip")
    add = parser.add_argument_group("all users of a shop").add_argument
    add("--interactions", type=Path, help="parquet, csv or jsonl of user, item and timestamp")
    add(
        "--users",
        type=Path,
        help="txt, csv or parquet of the users to recommend to; all if not given",
    )
    add("--output", type=Path, help="folder of the parquet files")
    add("--users-per-file", type=int, default=USERS_PER_PART, help="about so many; less memory")
    add_interaction_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, recommend, report."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if bool(options.items) == bool(options.interactions):
        parser.error("give either the items of a history, or --interactions with --output")
    if bool(options.interactions) != bool(options.output):
        parser.error("--interactions and --output, the folder to write to, go together")

    from transformers.utils.logging import disable_progress_bar

    from .shop.interactions import exit_on_bad_input
    from .shop.recommend import recommend_to_all, recommend_to_one

    disable_progress_bar()  # of transformers: folders load in a moment
    with exit_on_bad_input(parser):
        (recommend_to_all if options.interactions else recommend_to_one)(options)


if __name__ == "__main__":
    main()
