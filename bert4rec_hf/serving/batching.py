"""Requests that come one by one, answered together."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from bert4rec_hf.serving.recommender import Recommendations, Recommender

HISTORIES_TOGETHER = 64
"""Requests of one batch, at most."""


class Request(NamedTuple):
    """One history and what is asked for it."""

    model: str
    """Which of the recommenders answers."""

    items: list[str]
    """Raw items, oldest first."""

    k: int
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    exclude_seen: bool = True
    cold: str = "error"
    unknown: str = "skip"

    def together(self) -> tuple:
        """Equal for requests that one call of the recommender can answer."""
        return self.model, self.candidates, self.exclude_seen, self.cold, self.unknown


class TooManyRequestsError(Exception):
    """More requests wait than may."""


class Batcher:
    """Answers requests in a thread of its own: while one batch is computed, the next one gathers.

    So a single request waits for nobody, and under load the batches grow by themselves.

    Args:
        recommenders: By name.
        max_waiting: Requests that may wait; more are refused.
    """

    def __init__(self, recommenders: Mapping[str, Recommender], max_waiting: int = 1_000):
        self.recommenders = recommenders
        self.max_waiting = max_waiting
        self.queue: asyncio.Queue[tuple[Request, asyncio.Future]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommend")

    async def ask(self, request: Request) -> Recommendations:
        """Wait for the answer to one request.

        Raises:
            TooManyRequestsError: Too many wait already.
            ValueError: The request cannot be answered.
        """
        if self.queue.qsize() >= self.max_waiting:
            raise TooManyRequestsError
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((request, answer))
        return await answer

    async def compute(self, function: Any, *arguments: Any) -> Any:
        """Call a function between two batches, as both need all cores."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < HISTORIES_TOGETHER and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            answers = await self.compute(self.answer, [request for request, _ in batch])
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if waiting.done():  # its client has gone
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)

    def close(self) -> None:
        """Let the batch under way end, and the thread with it."""
        self.thread.shutdown()

    def answer(self, requests: list[Request]) -> list[Recommendations | Exception]:
        """Answer a batch; what can be asked together is one call."""
        groups = defaultdict(list)
        for place, request in enumerate(requests):
            groups[request.together()].append(place)
        answers: list[Any] = [None] * len(requests)
        for places in groups.values():
            group = [requests[place] for place in places]
            for place, answer in zip(places, self._answer_together(group), strict=True):
                answers[place] = answer
        return answers

    def _answer_together(self, group: list[Request]) -> list[Recommendations | Exception]:
        first = group[0]
        try:
            rows = self.recommenders[first.model].recommend(
                [list(request.items) for request in group],
                max(request.k for request in group),
                candidates=first.candidates,
                exclude={row: each.exclude for row, each in enumerate(group) if each.exclude},
                exclude_seen=first.exclude_seen,
                cold=first.cold,
                unknown=first.unknown,
            )
        except Exception as error:  # noqa: BLE001 - whoever asked gets it, and the others go on
            return [error] * len(group)
        answers: list[Recommendations | Exception] = []
        for request, row in zip(group, rows, strict=True):
            problem = row.problem
            answers.append(ValueError(problem) if problem else Recommendations(row[: request.k]))
        return answers
