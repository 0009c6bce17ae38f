"""What was done to the commands, how often, and the outcome, as the trials recorded it."""

from collections import Counter
from typing import Any

INTRODUCTION = """# Reliability

Each trial of `tests/trials` does to a command in a process of its own what happens to commands, and
asserts what comes of it. `pytest tests/trials -m "" --trials FILE` repeats them and notes the
outcomes; this table is rendered from such files by `bert4rec report`. A run that finished as if
undisturbed has the same weights, to the bit, and the same metrics, and nothing unfinished is left.
"""


def render_reliability(results: dict[str, dict[str, Any]]) -> str:
    """Put the trials of all results files into one table.

    Args:
        results: By name of the file, with the `trials` and where they were made.
    """
    times: Counter[tuple[str, str, str]] = Counter()
    for each in results.values():
        for trial in each["trials"]:
            times[trial["area"], trial["tried"], trial["outcome"]] += trial["times"]
    lines = [INTRODUCTION, "| area | tried | times | outcome |", "|---|---|---|---|"]
    lines += [
        f"| {area} | {tried} | {count} | {outcome} |"
        for (area, tried, outcome), count in times.items()
    ]
    lines += ["", *(describe_origin(name, each) for name, each in results.items())]
    return "\n".join(lines) + "\n"


def describe_origin(name: str, results: dict[str, Any]) -> str:
    """Where the outcomes of a file come from."""
    versions = results["versions"]
    return (
        f"- `{name}`: commit `{results['commit']}`, {results['device']['name']}, "
        f"torch {versions['torch']}, accelerate {versions['accelerate']}."
    )
