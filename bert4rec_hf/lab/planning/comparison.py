"""The formulas of a plan beside what was measured, for every committed result that they speak of.

python -m bert4rec_hf.lab.planning.comparison

Writes `model_cards/results/planning/predicted.json`, and `measured.json` beside this module, which
is what `bert4rec plan` knows of devices. Times are predicted by rates that are fitted to the other
results files of the same device only, as the plan of something new would be; memory has no rates.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from accelerate import Accelerator

from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.lab.benchmark.bert4rec import build_config, build_loader
from bert4rec_hf.lab.benchmark.task import Settings, Task
from bert4rec_hf.lab.benchmark.workloads import Shape, Workload
from bert4rec_hf.modeling import SAMPLED_OBJECTIVES, BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.objectives import OBJECTIVES, max_scores

from .devices import MEASURED, fit_rates, name_device
from .plan import COUNTED_BATCHES, Size, make_plan
from .step import Launch, Work, count_ranking, count_step, estimate_step

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "model_cards" / "results"

MIN_RESULTS = 3
"""Fewer measured steps of a device say too little about its rates."""


class Timed(NamedTuple):
    """Something that was timed, and the work that it was."""

    file: str
    what: str
    device: str
    precision: str
    work: Work
    seconds: float
    device_name: str

    @property
    def is_step(self) -> bool:
        """Whether rates are fitted to it."""
        return self.what.startswith("a training step")


def collect_runs() -> Iterator[tuple[Timed, None]]:
    """Trained models: the seconds of a step, on a dataset of which only the size is looked at."""
    for path in sorted(RESULTS.glob("*.json")):
        results = read_results(path)
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / f"{path.stem}.yaml"
            config.write_text(yaml.safe_dump(results["experiment"]), encoding="utf-8")
            experiment = load_experiment(config, ["--training.trackers=[]"])
        train = results["dataset"]["splits"]["train"]
        size = Size(
            num_items=results["dataset"]["after"]["items"],
            num_users=train["histories"],
            num_interactions=train["interactions"],
        )
        device = name_device(results["device"], results["device"].get("threads", 1))
        plan, training = make_plan(experiment, size, device), results["training"]
        yield (
            Timed(
                file=path.stem,
                what="a training step",
                device=device,
                precision=results.get("mixed_precision", "no"),
                work=plan.step,
                seconds=training["train_seconds"] / training["step"],
                device_name=results["device"]["name"],
            ),
            None,
        )


def collect_benchmarks() -> Iterator[tuple[Timed, tuple[int, int] | None]]:
    """Contestants that are this package's: seconds of a step or a ranking, and peak memory."""
    for path in sorted((RESULTS / "benchmarks").glob("*.json")):
        results = read_results(path)
        if (mode := results["plan"]["mode"]) not in ("train", "evaluate"):
            continue
        workload, shape = (
            Workload(**{"epoch_histories": 0} | results["workload"]),
            Shape(**results["shape"]),
        )
        for contestant, row in zip(results["contestants"], results["summary"], strict=True):
            settings = Settings(**contestant["settings"])
            is_plain = (settings.adapter, settings.compile) == ("none", "no")
            if contestant["contestant"] not in OBJECTIVES or not is_plain or row["failure"]:
                continue
            task = Task(
                contestant=contestant["contestant"],
                workload=workload,
                shape=shape,
                settings=settings,
            )
            device = name_device(results["device"], results["plan"]["threads"])
            work, memory = count_task(task, mode, "cpu" if device.startswith("cpu") else "cuda")
            per_second = row["histories_per_second"][1]
            yield (
                Timed(
                    file=path.stem,
                    what=f"{'a training step' if mode == 'train' else 'ranking'}: {row['label']}",
                    device=device,
                    precision=settings.precision,
                    work=work,
                    seconds=(settings.batch_size if mode == "train" else 1) / per_second,
                    device_name=results["device"]["name"],
                ),
                (memory, row["peak_memory_bytes"]) if mode == "train" else None,
            )


def collect_serving() -> Iterator[tuple[Timed, None]]:
    """Recommending to all users of a file."""
    results = read_results(RESULTS / "serving" / "electronics.json")
    batch, workload = results["batch"], Workload(**{"epoch_histories": 0} | results["workload"])
    task = Task(contestant="full_softmax", workload=workload, shape=Shape(**results["shape"]))
    yield (
        Timed(
            file="serving/electronics",
            what=f"scoring for the best {batch['k']}",
            device=name_device(results["device"], batch["threads"]),
            precision=results.get("mixed_precision", "no"),
            work=count_ranking(make_model(task), workload.mean_length),
            seconds=1 / batch["recommend_users_per_second"][1],
            device_name=results["device"]["name"],
        ),
        None,
    )


def make_model(task: Task) -> BERT4RecForMaskedItemModeling:
    """A contestant's model without weights."""
    with torch.device("meta"):
        model = BERT4RecForMaskedItemModeling(build_config(task, task.contestant))
    if task.contestant in SAMPLED_OBJECTIVES:
        model.use_row_gradients()
    return model


def count_task(task: Task, mode: str, kind: str) -> tuple[Work, int]:
    """The work of a contestant's step, or of ranking one target; and the memory of a step."""
    model = make_model(task)
    if mode == "evaluate":
        return count_ranking(model, task.workload.mean_length), 0
    loader = build_loader(task, is_sampled=task.contestant in SAMPLED_OBJECTIVES)
    batches, launch = list(islice(loader, COUNTED_BATCHES)), Launch(task.settings.precision)
    memory = estimate_step(model, batches[0], launch, kind, max_scores(torch.device(kind)))
    return count_step(model, batches, launch), memory.total


def fit_devices(timed: Sequence[Timed]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rates by device and precision, where enough steps were measured."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key in sorted({(each.device, each.precision) for each in timed}):
        steps = [each for each in timed if each.is_step and key == (each.device, each.precision)]
        if len(steps) < MIN_RESULTS:
            continue
        device, precision = key
        rates = fit_rates([each.work for each in steps], [each.seconds for each in steps])
        found.setdefault(device, {})[precision] = {
            **vars(rates),
            "devices": sorted({each.device_name for each in steps}),
            "results": len(steps),
        }
    return found


def predict(one: Timed, timed: Sequence[Timed]) -> float | None:
    """Seconds by the rates that the other files give; None where they are too few."""
    others = [
        each
        for each in timed
        if each.is_step
        and (each.device, each.precision) == (one.device, one.precision)
        and each.file != one.file
    ]
    if len(others) < MIN_RESULTS:
        return None
    return fit_rates([o.work for o in others], [o.seconds for o in others]).seconds(one.work)


def compare() -> dict[str, Any]:
    """Predict everything that was measured; rows of results, rates, and the cost of preparing."""
    collected = [*collect_runs(), *collect_benchmarks(), *collect_serving()]
    timed = [each for each, _ in collected]
    rows = []
    for one, memory in collected:
        row = {"file": one.file, "what": one.what, "device": one.device, "unit": "s"}
        predicted = predict(one, timed)
        if predicted is not None:
            rows.append(row | {"predicted": predicted, "measured": one.seconds})
        if memory is not None:
            what = one.what.replace("a training step", "memory of a step")
            sizes = dict(zip(("predicted", "measured"), memory, strict=True))
            rows.append(row | {"what": what, "unit": "bytes", **sizes})
    return {
        "kind": "planning",
        "rows": rows,
        "rates": add_spread(fit_devices(timed), rows),
        "preparing": measure_preparing(),
        **provenance(Accelerator()),
    }


def add_spread(
    rates: dict[str, dict[str, dict[str, Any]]], rows: Sequence[dict[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Note how far measured times were from predicted ones: the least, the median, the most."""
    for device, by_precision in rates.items():
        ratios = sorted(
            row["measured"] / row["predicted"]
            for row in rows
            if row["device"] == device and row["unit"] == "s"
        )
        spread = [ratios[0], statistics.median(ratios), ratios[-1]] if ratios else None
        for each in by_precision.values():
            each["spread"] = spread
    return rates


def measure_preparing() -> dict[str, Any]:
    """Processor seconds and bytes of memory per row, by the format of the file."""
    results = read_results(RESULTS / "preparation" / "prepare-3m.json")
    return {
        name: {
            "seconds_per_row": summary["prepare_cpu_seconds"] / results["rows"],
            "bytes_per_row": summary["prepare_peak_bytes"] / results["rows"],
        }
        for name, summary in results["summary"].items()
    }


def main() -> None:
    """Compare, and write both files."""
    results = compare()
    path = RESULTS / "planning" / "predicted.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    known = {name: results[name] for name in ("rates", "preparing")}
    MEASURED.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
