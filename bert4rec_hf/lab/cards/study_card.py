"""The card of a search for settings: every figure in it is taken from its results file."""

from typing import Any

from .comparison_card import table_head


def render_study_card(name: str, results: dict[str, Any]) -> str:
    """Tell in Markdown what was searched, what was best, and what matters.

    Args:
        name: Of the results file, without its ending, and of the plot.
        results: As `run_search` returns them.
    """
    ranges = results["search"]["ranges"]
    best, trials = results["best"], results["trials"]
    states = ", ".join(
        f"{sum(trial['state'] == state for trial in trials)} {state}"
        for state in sorted({trial["state"] for trial in trials})
    )
    versions = ", ".join(f"{library} {number}" for library, number in results["versions"].items())
    lines = [
        f"# {name}",
        "",
        f"{len(trials)} trials of `{results['study']['experiment']}` ({states}), judged on "
        f"validation alone; the best, trial {best['number']}, has {best['value']:.4f}.",
        "",
        *table_head(["setting", "searched", "best", "importance"]),
        *(
            f"| {setting} | {describe_range(each)} | {_short(best['values'][setting])} | "
            f"{results['importances'].get(setting, 0):.0%} |"
            for setting, each in ranges.items()
        ),
        "",
        f"![importance of each setting; trials by value]({name}.png)",
        "",
        *table_head(["trial", "state", "validation", *ranges, "s"]),
        *(
            f"| {trial['number']} | {trial['state']} | {_short(trial['value'])} | "
            f"{' | '.join(_short(trial['values'].get(setting)) for setting in ranges)} | "
            f"{_short(trial['seconds'])} |"
            for trial in trials
        ),
        "",
        f"Dataset `{results['dataset_fingerprint']}`, commit `{results['commit']}`, "
        f"{results['device']['name']}; {versions}.",
        "",
    ]
    return "\n".join(lines)


def describe_range(values: dict[str, Any]) -> str:
    """A range in a few words.

    >>> describe_range({"low": 0.1, "high": 1, "log": True})
    '0.1 to 1, logarithmic'
    """
    if "choices" in values:
        return ", ".join(map(str, values["choices"]))
    return f"{values['low']} to {values['high']}{', logarithmic' if values.get('log') else ''}"


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
