"""Recommendations or vectors for all users of a shop, part by part.

Each batch of histories is computed by one core and depends on nothing but its part, so that the
output is the same to the bit for any number of processes and cores.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from bert4rec_hf.data.vocabulary import FIRST_ITEM_ID
from bert4rec_hf.evaluation.ranking import HISTORIES_AT_ONCE, item_sets
from bert4rec_hf.serving.candidates import CandidateScorer
from bert4rec_hf.serving.catalog import Catalog
from bert4rec_hf.serving.parts import UserPart, read_part
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.serving.shards import Shards

NO_ITEMS = np.empty(0, dtype=np.int64)

Compute = Callable[[list[np.ndarray], list[str]], tuple[np.ndarray, ...]]
"""From the histories of a batch and their users to arrays with a row for each."""


@dataclass(kw_only=True)
class BatchRequest:
    """What all users are to be recommended."""

    k: int
    candidates: CandidateScorer
    excluded: Mapping[str, np.ndarray]
    """Ids that single users are not recommended."""

    exclude_seen: bool = True
    cold: str = "mask"
    """What users without an item of the catalog get, as for `Recommender.recommend`."""

    unknown: str = "skip"


@contextmanager
def one_core_each() -> Iterator[ThreadPoolExecutor]:
    """Let as many batches be computed at once as torch has threads, each by one of them.

    How a product is shared out among cores can change its last bits; a batch of its own does not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def compute_part(
    part: UserPart, compute: Compute, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, ...]:
    """Compute something for the users of a part, in batches of like length.

    Returns:
        Arrays with a row for each user, in the order of the part.
    """
    longest_first = np.argsort(-part.histories.lengths, kind="stable")
    batches = [
        longest_first[start : start + HISTORIES_AT_ONCE]
        for start in range(0, len(longest_first), HISTORIES_AT_ONCE)
    ]
    users = part.users.to_list()

    def run(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return compute([part.histories[row] for row in rows], [users[row] for row in rows])

    columns = zip(*pool.map(run, batches), strict=True)
    order = np.argsort(longest_first, kind="stable")
    return tuple(np.concatenate(column)[order] for column in columns)


class BatchRecommender:
    """Answers parts with the recommendations of their users.

    Args:
        recommender: Whose popularity is counted where cold users get what is popular.
        request: What is asked for.
    """

    def __init__(self, recommender: Recommender, request: BatchRequest):
        self.recommender, self.request = recommender, request
        names = recommender.vocabulary.names
        self.names = pl.Series("item", names, dtype=pl.String)
        titles = [recommender.titles.get(name) for name in names]
        self.titles = pl.Series("title", titles, dtype=pl.String)

    def __call__(
        self, part: UserPart, pool: ThreadPoolExecutor
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        """Recommend for the users of one part.

        Returns:
            A row per recommendation with the columns `user`, `rank`, `item`, `score` and `title`,
            and counts of what was met.

        Raises:
            ValueError: A user is cold, or an item unknown, and the request makes it an error.
        """
        is_cold = part.histories.lengths == 0
        self._check(part, is_cold)
        counts = {
            "users": len(part.users),
            "cold_users": int(is_cold.sum()),
            "unknown_interactions": part.num_unknown,
        }
        if len(part.users) == 0:
            ids, scores = np.zeros((0, 1), dtype=np.int64), np.zeros((0, 1), dtype=np.float32)
        else:
            ids, scores = compute_part(part, self._recommend, pool)
        if self.request.cold in ("popular", "empty"):
            self._answer_cold(part, is_cold, ids, scores)
        return self._tabulate(part.users, ids, scores), counts

    def _check(self, part: UserPart, is_cold: np.ndarray) -> None:
        if self.request.unknown == "error" and part.first_unknown:
            user, item = part.first_unknown
            raise ValueError(
                f"item {item!r} of user {user!r} is not in the catalog; was the model trained on "
                "the same shop? --unknown skip reads histories without such items"
            )
        if self.request.cold == "error" and is_cold.any():
            user = part.users[int(is_cold.argmax())]
            raise ValueError(
                f"user {user!r} has no item of the catalog; choose --cold mask, popular or empty"
            )

    def _recommend(self, histories: list[np.ndarray], users: list[str]) -> tuple[np.ndarray, ...]:
        request = self.request
        sets = histories if request.exclude_seen else [NO_ITEMS] * len(users)
        if request.excluded:
            own = [request.excluded.get(user, NO_ITEMS) for user in users]
            sets = list(map(np.append, sets, own))
        left_out = item_sets(sets) if any(map(len, sets)) else None
        states = self.recommender.scorer.encode(histories)
        ids, scores = request.candidates.best(states, request.k, left_out)
        return ids.cpu().numpy(), scores.cpu().numpy()

    def _answer_cold(
        self, part: UserPart, is_cold: np.ndarray, ids: np.ndarray, scores: np.ndarray
    ) -> None:
        """Put what is popular, or nothing, into the rows of cold users."""
        ids[is_cold] = 0
        if self.request.cold == "empty":
            return
        popularity = self.recommender.popularity
        most = np.flatnonzero(self.request.candidates.is_candidate)
        most = most[np.argsort(-popularity[most], kind="stable")]
        for row in np.flatnonzero(is_cold):
            own = self.request.excluded.get(part.users[int(row)], NO_ITEMS)
            chosen = most[: ids.shape[1] + len(own)]
            chosen = chosen[~np.isin(chosen, own)][: ids.shape[1]]
            ids[row, : len(chosen)] = chosen
            scores[row, : len(chosen)] = popularity[chosen]

    def _tabulate(self, users: pl.Series, ids: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
        rows, places = np.nonzero(ids >= FIRST_ITEM_ID)
        chosen = ids[rows, places]
        return pl.DataFrame(
            {
                "user": users.gather(rows),
                "rank": pl.Series(places + 1, dtype=pl.Int32),
                "item": self.names.gather(chosen),
                "score": pl.Series(scores[rows, places], dtype=pl.Float32),
                "title": self.titles.gather(chosen),
            }
        )


def answer_parts(
    shards: Shards,
    catalog: Catalog,
    answer: Callable[[UserPart, ThreadPoolExecutor], tuple[pl.DataFrame, dict[str, int]]],
    *,
    is_asked: bool,
) -> dict[str, Any]:
    """Answer all parts that are not yet, and write a shard for each.

    Args:
        shards: Whose parts have been dealt out.
        catalog: Knows the ids of items.
        answer: From a part to the table of its shard, and counts.
        is_asked: Whether only listed users are answered.

    Returns:
        The sums of the counts, over all shards.
    """
    pending = shards.pending()
    with (
        one_core_each() as pool,
        tqdm(total=len(pending), unit="part", disable=not shards.state.is_main_process) as progress,
    ):
        for number in pending:
            part = read_part(shards.parts, number, catalog, is_asked=is_asked)
            shards.write(number, *answer(part, pool))
            progress.update()
    return shards.finish()
