"""A small HTTP server: histories in, recommendations out, in batches, with limits."""

import asyncio
import copy
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, create_model

from bert4rec_hf.serving.batching import Batcher, TooManyRequestsError
from bert4rec_hf.serving.batching import Request as Question
from bert4rec_hf.serving.recommender import (
    COLD_HISTORIES,
    UNKNOWN_ITEMS,
    Recommendation,
    Recommender,
)

BASE = "base"
"""Name of the model without an adapter."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for."""

    max_items: int = 1_000
    """Items of a history, of candidates and of exclusions, each."""

    max_name_length: int = 256
    """Characters of a raw item."""

    max_k: int = 100
    max_body_bytes: int = 1_000_000
    max_waiting: int = 1_000
    """Requests that wait at a time."""


def load_recommenders(model: str | Path, adapters: Mapping[str, str]) -> dict[str, Recommender]:
    """Load a model and adapters for it; all share the weights of the model.

    Args:
        model: Folder or name of a hub.
        adapters: Folder or name by what requests call the adapter.

    Raises:
        ValueError: An adapter is called as the model itself is, or cannot be loaded.
    """
    if BASE in adapters:
        raise ValueError(f"{BASE!r} is the model without an adapter; give the adapter another name")
    base = Recommender.from_pretrained(model)
    found = {BASE: base}
    for name, folder in adapters.items():
        weights = base.scorer.model.state_dict(keep_vars=True).values()
        same = copy.deepcopy(base.scorer.model, {id(weight): weight for weight in weights})
        adapted = PeftModel.from_pretrained(same, folder)
        found[name] = Recommender(adapted, base.vocabulary, base.titles, base.popularity)
    return found


def build_models(limits: Limits) -> tuple[type[BaseModel], type[BaseModel]]:
    """What `/recommend` and `/similar` take, with their limits."""
    strict = ConfigDict(extra="forbid", strict=True)
    item = Annotated[str, Field(max_length=limits.max_name_length)]
    items = Annotated[list[item], Field(max_length=limits.max_items)]
    k = Annotated[int, Field(ge=1, le=limits.max_k)]
    recommend = create_model(
        "Recommend",
        __config__=strict,
        items=(items, Field(description="The history: raw items, oldest first.")),
        k=(k, 10),
        adapter=(str, BASE),
        candidates=(items | None, Field(None, min_length=1)),
        exclude=(items, []),
        exclude_seen=(bool, True),
        cold=(Literal[*COLD_HISTORIES], "error"),
        unknown=(Literal[*UNKNOWN_ITEMS], "skip"),
    )
    similar = create_model("Similar", __config__=strict, item=(item, ...), k=(k, 10))
    return recommend, similar


def build_app(recommenders: Mapping[str, Recommender], limits: Limits | None = None) -> FastAPI:
    """Make the server.

    Args:
        recommenders: By the name of the adapter, the model itself as BASE.
        limits: Of requests.
    """
    limits = limits or Limits()
    batcher = Batcher(recommenders, limits.max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a history that cannot be read: its client is told
            yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        batcher.close()

    app = FastAPI(title="BERT4Rec", lifespan=lifespan)
    app.middleware("http")(partial(refuse_large, limits.max_body_bytes))
    recommend_body, similar_body = build_models(limits)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        base = recommenders[BASE]
        return {
            "status": "ok",
            "items": len(base.vocabulary.items),
            "adapters": [name for name in recommenders if name != BASE],
            "waiting": batcher.queue.qsize(),
        }

    @app.post("/recommend")
    async def recommend(body: recommend_body) -> dict[str, Any]:
        if body.adapter not in recommenders:
            raise HTTPException(
                404, f"there is no adapter {body.adapter!r}, known: {', '.join(recommenders)}"
            )
        return await answer(
            batcher.ask(
                Question(
                    model=body.adapter,
                    items=body.items,
                    k=body.k,
                    exclude=tuple(body.exclude),
                    candidates=None if body.candidates is None else tuple(body.candidates),
                    exclude_seen=body.exclude_seen,
                    cold=body.cold,
                    unknown=body.unknown,
                )
            )
        )

    @app.post("/similar")
    async def similar(body: similar_body) -> dict[str, Any]:
        return await answer(batcher.compute(recommenders[BASE].similar_items, body.item, body.k))

    return app


async def refuse_large(
    max_bytes: int, request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Answer only what says how large it is, and is not too large to be read."""
    length = request.headers.get("content-length", "0" if request.method == "GET" else "")
    if not length.isdecimal():
        return Response("a request must state its content-length", 411)
    if int(length) > max_bytes:
        return Response(
            f"the request has {int(length):,} bytes, more than the limit of {max_bytes:,}; send "
            "fewer items",
            413,
        )
    return await call_next(request)


async def answer(asked: Awaitable[Sequence[Recommendation]]) -> dict[str, Any]:
    """Wait for items, and say in HTTP what is wrong if there are none."""
    try:
        found = await asked
    except TooManyRequestsError as error:
        raise HTTPException(503, "too many requests wait", {"Retry-After": "1"}) from error
    except KeyError as error:
        raise HTTPException(422, str(error.args[0])) from error
    except (TypeError, ValueError) as error:
        raise HTTPException(422, str(error)) from error
    return {"items": [each._asdict() for each in found]}
