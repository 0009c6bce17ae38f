"""Options of the commands that apply a trained model to a file of interactions."""

import argparse


def add_interaction_options(parser: argparse.ArgumentParser) -> None:
    """Offer what says how a file of interactions is read."""
    add = parser.add_argument_group("how interactions are read").add_argument
    add(
        "--source",
        default="",
        help="format of the file, such as csv or ml1m (default: by its file name)",
    )
    for column in ("user", "item", "timestamp"):
        add(f"--{column}-column", metavar="NAME", default=column, help=f"default: {column}")
