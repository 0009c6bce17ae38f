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
from typing import Any

from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.commands.interaction_options import (
    add_interaction_options,
    describe_columns,
    exit_on_bad_input,
    fingerprint_file,
    launch,
    read_interactions,
)
from bert4rec_hf.commands.parser import command_parser
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.serving.batch import BatchRecommender, BatchRequest, answer_parts
from bert4rec_hf.serving.interactions import read_names
from bert4rec_hf.serving.parts import USERS_PER_PART, count_parts, write_parts
from bert4rec_hf.serving.recommender import COLD_HISTORIES, UNKNOWN_ITEMS, Recommender
from bert4rec_hf.serving.shards import Shards


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


def recommend_to_one(options: argparse.Namespace) -> None:
    """Recommend for the history of the command line, and print."""
    exclude = options.exclude and read_names(options.exclude, ["item"])["item"].to_list()
    candidates = options.candidates and read_names(options.candidates, ["item"])["item"].to_list()
    recommendations = Recommender.from_pretrained(options.model).recommend(
        options.items,
        options.k,
        candidates=candidates,
        exclude=exclude,
        exclude_seen=not options.include_seen,
        cold=options.cold or "error",
        unknown=options.unknown or "error",
    )
    for place, (item, score, title) in enumerate(recommendations, start=1):
        print(f"{place:>3}  {score:8.4f}  {item}" + (f"  {title}" if title else ""))


def recommend_to_all(options: argparse.Namespace) -> None:
    """Recommend to the users of a file, and tell what was written."""
    accelerator = launch()
    recommender = Recommender.from_pretrained(options.model, device=accelerator.device)
    request = read_request(options, recommender)
    shards = Shards(options.output, describe_job(options))
    interactions = read_interactions(options, options.interactions)
    users = options.users and read_names(options.users, ["user"])

    def deal_out(folder: Path, num_parts: int | None) -> int:
        num_parts = num_parts or count_parts(interactions, users, options.users_per_file)
        write_parts(interactions, users, folder, num_parts)
        return num_parts

    shards.prepare(deal_out)
    if request.cold == "popular":
        recommender.popularity = recommender.vocabulary.count(interactions)
    answer = BatchRecommender(recommender, request)
    totals = answer_parts(shards, recommender.vocabulary, answer, is_asked=users is not None)
    if accelerator.is_main_process:
        print(describe_totals(totals))
        print(f"written to {options.output}")


def read_request(options: argparse.Namespace, recommender: Recommender) -> BatchRequest:
    """Read the files that say what may be recommended to whom."""
    candidates = options.candidates and read_names(options.candidates, ["item"])["item"].to_list()
    exclude = options.exclude and read_names(options.exclude, ["user", "item"])
    excluded: dict[str, Any] = {}
    for_all = None
    if exclude is not None and "user" in exclude.columns:
        groups = exclude.group_by("user").agg("item").iter_rows()
        excluded = {user: recommender.vocabulary.find(items) for user, items in groups}
    elif exclude is not None:
        for_all = exclude["item"].to_list()
    checked = recommender.read_options(
        options.k, candidates=candidates, exclude=for_all, cold="mask", unknown="skip"
    )
    return BatchRequest(
        k=checked.k,
        candidates=checked.candidates,
        excluded=excluded,
        exclude_seen=not options.include_seen,
        cold=options.cold or "mask",
        unknown=options.unknown or "skip",
    )


def describe_job(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the output, to go on with the same job only."""
    weights = fingerprint_weights(fetch_folder(options.model))
    files = ("interactions", "users", "candidates", "exclude")
    return {
        "model": weights,
        **{name: fingerprint_file(getattr(options, name)) for name in files},
        "columns": describe_columns(options),
        "users_per_file": options.users_per_file,
        "k": options.k,
        "include_seen": options.include_seen,
        "cold": options.cold or "mask",
        "unknown": options.unknown or "skip",
    }


def describe_totals(totals: dict[str, int]) -> str:
    """Tell in a line what was written, and in further ones what was met on the way."""
    lines = [f"{totals['users']:,} users in {totals['shards']:,} files"]
    if totals["cold_users"]:
        lines.append(f"{totals['cold_users']:,} of them have no item of the catalog")
    if totals["unknown_interactions"]:
        lines.append(
            f"{totals['unknown_interactions']:,} interactions with unknown items were skipped"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, recommend, report."""
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = build_parser()
    options = parser.parse_args(arguments)
    if bool(options.items) == bool(options.interactions):
        parser.error("give either the items of a history, or --interactions with --output")
    if bool(options.interactions) != bool(options.output):
        parser.error("--interactions and --output, the folder to write to, go together")
    with exit_on_bad_input(parser):
        (recommend_to_all if options.interactions else recommend_to_one)(options)


if __name__ == "__main__":
    main()
