"""What recommending costs: all users of a shop beside ranking alone, and one user beside a product.

The model is generated, of a workload's catalog and a shape's size; what is compared takes turns in
one process, round by round.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.shared_ranking import rank_histories
from bert4rec_hf.lab.benchmark.bert4rec import build_config
from bert4rec_hf.lab.benchmark.report import quartiles
from bert4rec_hf.lab.benchmark.task import Task, hold_out_last
from bert4rec_hf.lab.benchmark.workloads import FIRST_ITEM_ID, draw_histories
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.batch import BatchRecommender, BatchRequest, answer_parts
from bert4rec_hf.serving.catalog import Catalog
from bert4rec_hf.serving.parts import count_parts, write_parts
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.serving.shards import Shards

POLL_SECONDS = 0.05


def name_items(num_items: int) -> list[str]:
    """Raw items of a generated catalog."""
    return [f"item-{number:08d}" for number in range(num_items)]


def build_recommender(task: Task, device: torch.device | str = "cpu") -> Recommender:
    """Make a model of a task's size, with weights as they are drawn."""
    torch.manual_seed(task.seed)
    model = BERT4RecForMaskedItemModeling(build_config(task, "full_softmax")).to(device)
    names = ["[PAD]", "[MASK]", *name_items(task.workload.num_items)]
    return Recommender(model, Catalog({name: number for number, name in enumerate(names)}))


def draw_interactions(task: Task, num_users: int) -> pl.DataFrame:
    """Name the users and items of a workload's histories, as many of them as asked for."""
    histories = draw_rows(task, num_users)
    ids = np.concatenate(histories)
    items = pl.Series(name_items(task.workload.num_items)).gather(ids - FIRST_ITEM_ID)
    users = pl.Series([f"user-{number:08d}" for number in range(num_users)])
    row = pl.int_range(1, len(ids) + 1, eager=True, dtype=pl.Int64)
    who = users.gather(np.repeat(np.arange(num_users), list(map(len, histories))))
    return pl.DataFrame({"user": who, "item": items, "timestamp": row.cast(pl.Float64), "row": row})


def take_turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Let each do its work once for nothing, then once a round; (rounds,) seconds of each."""
    for work in contestants.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def measure_latency(task: Task, rounds: int) -> dict[str, Any]:
    """Recommend to one user, beside the encoder with one product and a top-k.

    Returns:
        Quartiles of milliseconds of each, and of their ratio round by round.
    """
    recommender = build_recommender(task)
    histories = draw_histories(task.workload, task.seed)
    ids = next(each for each in histories if len(each) >= task.workload.mean_length)
    names = [recommender.vocabulary.names[number] for number in ids]
    table = recommender.scorer.weight.T

    @torch.inference_mode()
    def encode() -> torch.Tensor:
        return recommender.scorer.encode([ids])

    @torch.inference_mode()
    def plain() -> Any:
        return (encode() @ table).topk(10)

    seconds = take_turns(
        {"encoder": encode, "plain": plain, "recommend": lambda: recommender.recommend(names)},
        rounds,
    )
    return {f"{name}_milliseconds": quartiles(1e3 * each) for name, each in seconds.items()} | {
        "recommend_over_plain": quartiles(seconds["recommend"] / seconds["plain"]),
        "history_length": len(ids),
        "rounds": rounds,
    }


def measure_loading(num_items: int, rounds: int) -> dict[str, Any]:
    """Read the vocabulary of a folder.

    Returns:
        Quartiles of seconds, by the clock and of the processor.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_vocabulary(name_items(num_items)).save_pretrained(folder)
        clock, processor = [], []
        for _ in range(rounds):
            start = time.perf_counter(), time.process_time()
            Catalog.from_pretrained(folder)
            clock.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
    return {
        "num_items": num_items,
        "seconds": quartiles(np.array(clock)),
        "processor_seconds": quartiles(np.array(processor)),
        "rounds": rounds,
    }


def measure_batch(
    task: Task, num_users: int, rounds: int, k: int = 20, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Recommend to all users of a file, beside ranking a target for each of them.

    Interactions are dealt out, read, recommended for and written in every round.

    Returns:
        Quartiles of users per second of each, and of their ratio round by round.
    """
    recommender = build_recommender(task, device)
    interactions = draw_interactions(task, num_users)
    histories, targets = hold_out_last(draw_histories(task.workload, task.seed), num_users)
    request = BatchRequest(k=k, candidates=recommender.read_options(k).candidates, excluded={})

    def rank() -> None:
        rank_histories(recommender.scorer, histories, targets, EvaluationConfig(ks=[10]))

    def recommend() -> None:
        with tempfile.TemporaryDirectory() as folder:
            shards = Shards(Path(folder) / "recs", {})
            frame = interactions.lazy()

            def deal_out(path: Path, _: int | None) -> int:
                write_parts(frame, None, path, num_parts := count_parts(frame, None))
                return num_parts

            shards.prepare(deal_out)
            answer = BatchRecommender(recommender, request)
            answer_parts(shards, recommender.vocabulary, answer, is_asked=False)

    seconds = take_turns({"ranking": rank, "recommend": recommend}, rounds)
    return {
        "ranking_users_per_second": quartiles(num_users / seconds["ranking"]),
        "recommend_users_per_second": quartiles(num_users / seconds["recommend"]),
        "share_of_ranking": quartiles(seconds["ranking"] / seconds["recommend"]),
        "users": num_users,
        "k": k,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }


def draw_rows(task: Task, num_users: int) -> list[np.ndarray]:
    """Histories of so many users, as `draw_interactions` names them."""
    histories = draw_histories(task.workload, task.seed)
    return [histories[row % len(histories)] for row in range(num_users)]


def measure_memory(task: Task, user_counts: list[int]) -> list[dict[str, Any]]:
    """Run the command for several numbers of users, and watch its resident memory.

    Returns:
        For each number the peak in bytes and the seconds of the command, its start included.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recommender = build_recommender(task)
        recommender.scorer.model.save_pretrained(folder / "model")
        build_vocabulary(name_items(task.workload.num_items)).save_pretrained(folder / "model")
        del recommender
        for num_users in user_counts:
            draw_interactions(task, num_users).drop("row").write_parquet(folder / "orders.parquet")
            command = [sys.executable, "-m", "bert4rec_hf.commands.recommend", folder / "model"]
            command += ["--interactions", folder / "orders.parquet"]
            command += ["--output", folder / f"recs-{num_users}"]
            rows.append({"users": num_users} | watch_memory(list(map(str, command))))
    return rows


def watch_memory(command: list[str]) -> dict[str, Any]:
    """Run a command to its end; peak of its resident memory, and what it took.

    Raises:
        RuntimeError: It failed.
    """
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:  # it ended in between
            break
        time.sleep(POLL_SECONDS)
    if process.wait():
        raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}")
    return {"peak_memory_bytes": peak, "seconds": time.perf_counter() - start}
