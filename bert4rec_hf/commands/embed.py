"""Write the vectors of users, or of items, to a parquet file.

bert4rec embed runs/shop/model --interactions orders.parquet --output users.parquet
bert4rec embed runs/shop/model --items items.parquet

The score of an item for a user is the inner product of their vectors. As with recommend, users are
streamed, accelerate launch -m bert4rec_hf.commands.embed … divides them among processes, and the
same command resumes after it was killed.
"""

from collections.abc import Sequence
from pathlib import Path

from bert4rec_hf.serving.choices import USERS_PER_PART

from .interaction_options import add_interaction_options
from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, embed, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument(
        "model", help="a model or adapter folder, or the name of a repository on a hub"
    )
    parser.add_argument("--items", type=Path, help="new parquet file for the item vectors")
    add = parser.add_argument_group("users").add_argument
    add(
        "--interactions",
        type=Path,
        help="parquet, csv or jsonl file with the columns user, item and timestamp",
    )
    add("--output", type=Path, help="new parquet file for the user vectors")
    add(
        "--users-per-file",
        type=int,
        default=USERS_PER_PART,
        help="users held in memory at once (default: %(default)s)",
    )
    add_interaction_options(parser)
    options = parser.parse_args(arguments)
    if bool(options.interactions) != bool(options.output):
        parser.error("--interactions needs --output, the file to write, and the other way round")
    if not (options.items or options.output):
        parser.error("give --interactions with --output, or --items, or both")

    from transformers.utils.logging import disable_progress_bar

    from .shop.embed import embed_items, embed_users
    from .shop.interactions import exit_on_bad_input

    disable_progress_bar()  # of transformers: folders load in a moment
    with exit_on_bad_input(parser):
        if options.items:
            embed_items(options)
        if options.output:
            embed_users(options)


if __name__ == "__main__":
    main()
