"""Damage every kind of file many times over, and count what came of it.

python -m tests.fuzz.long_run --inputs 100000 --output fuzz.json experiment "model config"

Each target runs in a process of its own, whose memory is limited; one that dies is a finding and is
started again behind the input that killed it. Without names, all targets run.
"""

import argparse
import json
import multiprocessing
import resource
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bert4rec_hf.evaluation.provenance import provenance
from tests.fuzz.inputs import TARGETS, judge, mutate, whole

MEMORY_BYTES = 6_000_000_000
"""Address space of a process, most of which its libraries take by being loaded."""

SECONDS = 5
"""Of computing, for one input."""

BATCH = 250


def stop(*_: object) -> None:
    raise TimeoutError(f"an input took more than {SECONDS} seconds")


def work(name: str, folder: Path, numbers: range, answers: Any) -> None:
    """Judge a range of inputs, and tell each outcome as soon as it is known."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, stop)
    content = whole(folder, name)
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome = judge(name, folder, mutate(content, number))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.send((number, outcome))
    answers.send((None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run(name: str, folder: Path, inputs: int) -> dict[str, Any]:
    """Judge so many inputs of a target."""
    outcomes: Counter[str] = Counter()
    examples: dict[str, int] = {}
    first, peak, started = 0, 0, time.monotonic()
    while first < inputs:
        receive, send = multiprocessing.Pipe(duplex=False)
        numbers = range(first, inputs)
        process = multiprocessing.Process(target=work, args=(name, folder, numbers, send))
        process.start()
        send.close()
        try:
            while True:
                number, outcome = receive.recv()
                if number is None:
                    peak = max(peak, outcome)
                    continue
                outcomes[outcome] += 1
                examples.setdefault(outcome, number)
                first = number + 1
        except EOFError:
            process.join()
        if process.exitcode:
            outcome = f"the process ended with {process.exitcode}"
            outcomes[outcome] += 1
            examples.setdefault(outcome, first)
            first += 1
    findings = {key: examples[key] for key in outcomes if key not in ("read", "refused")}
    return {
        "inputs": sum(outcomes.values()),
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "findings": {key: {"count": outcomes[key], "first": findings[key]} for key in findings},
        "peak_bytes": peak,
        "seconds": round(time.monotonic() - started, 1),
    }


def describe_trials(targets: dict[str, Any]) -> list[dict[str, Any]]:
    """List what was tried and what came of it, as the reliability table takes it."""
    texts = {"read": "read", "refused": "refused, with the name of the file"}
    return [
        {"area": "damaged files", "tried": name, "outcome": outcome, "times": times}
        for name, result in targets.items()
        for outcome, times in [
            *((text, result[key]) for key, text in texts.items()),
            *((text, finding["count"]) for text, finding in result["findings"].items()),
        ]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--output", type=Path, required=True, help="JSON; results are added to it")
    options = parser.parse_args()
    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"there is no target {name}; there are {', '.join(TARGETS)}")
    multiprocessing.set_start_method("spawn")
    results = json.loads(options.output.read_text()) if options.output.exists() else {"targets": {}}
    results |= provenance(Accelerator(cpu=True))
    for name in options.targets:
        with tempfile.TemporaryDirectory() as folder:
            results["targets"][name] = run(name, Path(folder) / "target", options.inputs)
        results |= {"kind": "reliability", "trials": describe_trials(results["targets"])}
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
