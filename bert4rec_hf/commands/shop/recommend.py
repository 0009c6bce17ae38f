"""Recommendations for one history or for all users of a file."""

import argparse
from pathlib import Path
from typing import Any

from bert4rec_hf.commands.shop.interactions import (
    describe_columns,
    fingerprint_file,
    launch,
    read_interactions,
)
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.serving.batch import BatchRecommender, BatchRequest, answer_parts
from bert4rec_hf.serving.interactions import read_names
from bert4rec_hf.serving.parts import count_parts, write_parts
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.serving.shards import Shards


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
    """Recommend to the users of a file, and report what was written."""
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
    """Read the files of allowed items, excluded items and users."""
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
    """Collect everything that affects the output, so that only the same job is resumed."""
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
    """Summarize what was written, then what was skipped."""
    lines = [f"{totals['users']:,} users in {totals['shards']:,} files"]
    if totals["cold_users"]:
        lines.append(f"{totals['cold_users']:,} of them have no item in the catalog")
    if totals["unknown_interactions"]:
        lines.append(
            f"{totals['unknown_interactions']:,} interactions with unknown items were skipped"
        )
    return "\n".join(lines)
