"""The options of commands that read the interactions of a shop with a trained model."""

import argparse


def add_interaction_options(parser: argparse.ArgumentParser) -> None:
    """Offer what says how a file of interactions is read."""
    add = parser.add_argument_group("how interactions are read").add_argument
    add("--source", default="", help="format of the file, if its ending does not say: csv, ml1m, …")
    for column in ("user", "item", "timestamp"):
        add(f"--{column}-column", metavar="NAME", default=column, help=f"{column} if not given")
