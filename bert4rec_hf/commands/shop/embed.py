"""Vectors of users and of items, written to parquet files."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from bert4rec_hf.commands.shop.interactions import (
    describe_columns,
    fingerprint_file,
    launch,
    read_interactions,
)
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.serving.batch import answer_parts, compute_part
from bert4rec_hf.serving.histories import vector_frame
from bert4rec_hf.serving.parts import UserPart, count_parts, write_parts
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.serving.shards import Shards


def embed_users(options: argparse.Namespace) -> None:
    """Write the vectors of all users of a file, and say so."""
    if options.output.exists():
        raise ValueError(f"{options.output} exists; choose another --output or remove it")
    accelerator = launch()
    recommender = Recommender.from_pretrained(options.model, device=accelerator.device)
    job = {
        "model": fingerprint_weights(fetch_folder(options.model)),
        "interactions": fingerprint_file(options.interactions),
        "columns": describe_columns(options),
        "users_per_file": options.users_per_file,
    }
    # One file is asked for; its shards are put together when all are there.
    shards = Shards(options.output.with_name(f".{options.output.name}-shards"), job)
    interactions = read_interactions(options, options.interactions)

    def deal_out(folder: Path, num_parts: int | None) -> int:
        num_parts = num_parts or count_parts(interactions, None, options.users_per_file)
        write_parts(interactions, None, folder, num_parts)
        return num_parts

    def answer(part: UserPart, pool: ThreadPoolExecutor) -> tuple[pl.DataFrame, dict[str, int]]:
        (vectors,) = compute_part(part, lambda rows, _: (recommender.vectors.encode(rows),), pool)
        frame = vector_frame(part.users.alias("user"), vectors)
        return frame, {"users": frame.height, "unknown_interactions": part.num_unknown}

    shards.prepare(deal_out)
    totals = answer_parts(shards, recommender.vocabulary, answer, is_asked=False)
    if accelerator.is_main_process:
        shards.join(options.output)
        print(f"{totals['users']:,} vectors of {recommender.vectors.size} numbers")
        print(f"written to {options.output}")


def embed_items(options: argparse.Namespace) -> None:
    """Write the vectors of all items, and say so."""
    if options.items.exists():
        raise ValueError(f"{options.items} exists; choose another --items or remove it")
    recommender = Recommender.from_pretrained(options.model)
    frame = vector_frame(pl.Series("item", recommender.catalog), recommender.item_vectors)
    unfinished = options.items.with_name(f".{options.items.name}-unfinished")
    frame.write_parquet(unfinished, mkdir=True)
    unfinished.replace(options.items)
    print(f"{frame.height:,} vectors of {recommender.vectors.size} numbers")
    print(f"written to {options.items}")
