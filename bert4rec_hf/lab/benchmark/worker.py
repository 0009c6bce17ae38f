"""The process of one contestant: a task as its argument, requests in, answers out, as JSON lines.

A request is `{"mode": "train", "batches": 3}`; an answer says how long it took and what was done.
With the mode `profile` and a `folder` training is not timed but profiled.
When requests end, so does the process. It needs torch, numpy and what its contestant needs.
"""

import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bert4rec_hf.lab.benchmark.contestants import CONTESTANTS
from bert4rec_hf.lab.benchmark.task import Contestant, Task
from bert4rec_hf.training.process_memory import peak_resident_bytes

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "recbole", "rectools", "replay-rec")


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    order = json.loads(sys.argv[1])
    limit_memory(order["max_memory_gb"])
    task = Task.from_dict(order["task"])
    contestant = CONTESTANTS[task.contestant](task)
    if not hasattr(contestant, order["mode"]):
        raise NotImplementedError(f"{task.contestant} does not {order['mode']}")
    baseline = peak_memory_bytes()
    if order["mode"] != "collate":
        contestant.build()
    built = {**count_parameters(contestant), "versions": find_versions()}
    answers.write(json.dumps(built) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answer = (profile if request["mode"] == "profile" else respond)(contestant, request)
        peak = peak_memory_bytes()
        answer |= {"peak_memory_bytes": peak - baseline, "process_memory_bytes": peak}
        answers.write(json.dumps(answer) + "\n")


def respond(contestant: Contestant, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked, on the clock."""
    synchronize()
    start = time.perf_counter()
    work = getattr(contestant, request["mode"])(request["batches"])
    synchronize()
    return {"seconds": time.perf_counter() - start, **work._asdict()}


def profile(contestant: Contestant, request: dict[str, Any]) -> dict[str, Any]:
    """Write a profile of some training steps into a folder, off the clock."""
    # An interpreter of a peer need not have accelerate.
    from bert4rec_hf.training.profiling import WARMUP_STEPS, profile_steps

    folder = Path(request["folder"])
    with profile_steps(contestant.accelerator, folder, request["batches"]) as on_step:
        for _ in range(WARMUP_STEPS + request["batches"]):
            contestant.train(1)
            on_step()
    return {}


def synchronize() -> None:
    """Wait for what was started on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """Most memory that this process has held so far: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def limit_memory(max_gb: float | None) -> None:
    """Let allocations beyond a limit fail here, before the machine runs out of memory."""
    if max_gb is not None:
        max_bytes = int(max_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))


def count_parameters(contestant: Contestant) -> dict[str, int | None]:
    """Count the weights of the contestant's model, if it has one, and those that are trained."""
    model = getattr(contestant, "model", None)
    if model is None:
        return {"parameters": None, "trainable": None}
    weights = list(model.parameters())
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "trainable": sum(weight.numel() for weight in weights if weight.requires_grad),
    }


def find_versions() -> dict[str, str]:
    """Versions of what contestants are made of, as far as it is installed here."""
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in LIBRARIES if name in installed}


if __name__ == "__main__":
    serve()
