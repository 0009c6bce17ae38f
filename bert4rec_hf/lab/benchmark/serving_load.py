"""What a server takes to answer: latencies at a steady rate of requests, and its memory over time.

python -m bert4rec_hf.lab.benchmark.serving_load --items 160052 --rate 50 --requests 1500

The model is untrained, as costs do not depend on what it has learned; histories are drawn.
Requests are sent when they are due, whether or not earlier ones have been answered, so that a slow
answer makes the later ones wait, as it would.
"""

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from accelerate import Accelerator

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

WARMUP_REQUESTS = 100
MEMORY_SAMPLES = 10


def write_model(folder: Path, num_items: int, hidden_size: int) -> None:
    """Write an untrained model of a size."""
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=num_items + 2,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_attention_heads=hidden_size // 64 or 1,
        norm_first=True,
        output_transform=False,
        output_bias=False,
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(folder)
    build_vocabulary([f"item-{number}" for number in range(num_items)]).save_pretrained(folder)


def start_server(folder: Path) -> tuple[subprocess.Popen, str]:
    """Start `bert4rec serve` and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bert4rec_hf.commands.serve", str(folder), "--port", str(port)]
    server, url = subprocess.Popen(command, stderr=subprocess.DEVNULL), f"http://127.0.0.1:{port}"
    while server.poll() is None:
        try:
            httpx.get(f"{url}/health", timeout=60)
            return server, url
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the server ended with {server.returncode} before it answered")


async def send(url: str, num_requests: int, rate: float, num_items: int) -> np.ndarray:
    """Send requests at a rate; (requests,) seconds from when each was due to its answer.

    Args:
        url: Of the server.
        num_requests: How many.
        rate: Per second; 0 sends the next when 16 others are under way at most.
        num_items: Of the catalog that histories are drawn from.
    """
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 50, num_requests)
    limits = httpx.Limits(max_connections=None if rate else 16)
    seconds = np.zeros(num_requests)
    async with httpx.AsyncClient(limits=limits, timeout=None) as client:
        begun = time.perf_counter()

        async def ask(number: int) -> None:
            due = begun + number / rate if rate else time.perf_counter()
            await asyncio.sleep(max(0, due - time.perf_counter()))
            history = generator.integers(0, num_items, lengths[number])
            body = {"items": [f"item-{item}" for item in history]}
            (await client.post(f"{url}/recommend", json=body)).raise_for_status()
            seconds[number] = time.perf_counter() - due

        await asyncio.gather(*map(ask, range(num_requests)))
    return seconds


def measure_load(
    num_items: int, hidden_size: int, num_requests: int, rate: float
) -> dict[str, Any]:
    """Run a server under load, and stop it.

    Returns:
        Latencies in milliseconds, resident memory after each tenth of the requests, in bytes, and
        how the server ended.
    """
    with tempfile.TemporaryDirectory() as workplace:
        write_model(Path(workplace), num_items, hidden_size)
        server, url = start_server(Path(workplace))
        try:
            asyncio.run(send(url, WARMUP_REQUESTS, rate, num_items))
            process, seconds, memory = psutil.Process(server.pid), [], []
            memory.append(process.memory_info().rss)
            used = sum(process.cpu_times()[:2])
            for _ in range(MEMORY_SAMPLES):
                part = asyncio.run(send(url, num_requests // MEMORY_SAMPLES, rate, num_items))
                seconds.append(part)
                memory.append(process.memory_info().rss)
            used = sum(process.cpu_times()[:2]) - used
            server.send_signal(signal.SIGTERM)
            ended = server.wait(timeout=60)
        finally:
            server.kill()
    times = 1_000 * np.concatenate(seconds)
    return {
        "items": num_items,
        "hidden_size": hidden_size,
        "requests": len(times),
        "requests_per_second": rate,
        "milliseconds": {
            "p50": float(np.percentile(times, 50)),
            "p90": float(np.percentile(times, 90)),
            "p99": float(np.percentile(times, 99)),
            "max": float(times.max()),
        },
        "server_cpu_milliseconds_per_request": 1_000 * used / len(times),
        "resident_bytes": memory,
        "exit_code": ended,
    }


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--items", type=int, default=160_052)
    add("--hidden-size", type=int, default=256)
    add("--requests", type=int, default=1_500)
    add("--rate", type=float, default=50, help="requests per second; 0 for as many as it takes")
    add("--output", type=Path, help="a JSON file for what was measured")
    options = parser.parse_args()
    measured = measure_load(options.items, options.hidden_size, options.requests, options.rate)
    results = {
        "command": "python -m bert4rec_hf.lab.benchmark.serving_load " + " ".join(sys.argv[1:]),
        "load_average": psutil.getloadavg()[0],
        **measured,
        **provenance(Accelerator(cpu=True)),
    }
    text = json.dumps(results, indent=2) + "\n"
    print(text)  # noqa: T201
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
