"""All tables of the report on the device at hand, as many as fit into a time.

Tables come in the order of what they tell, each with a share of the time that is left. What did not
fit is left out and named, so that another call can measure it alone.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.lab.benchmark.contestants import parse_contestants
from bert4rec_hf.lab.benchmark.report import collect_results
from bert4rec_hf.lab.benchmark.serving import measure_batch
from bert4rec_hf.lab.benchmark.task import Settings, Task
from bert4rec_hf.lab.benchmark.tournament import Plan, run_tournament
from bert4rec_hf.lab.benchmark.workloads import SHAPES, Workload
from bert4rec_hf.lab.planning.devices import name_device

LEAST_SECONDS = 20
"""A table with less time than that is not begun: most of it goes into starting a process."""

BATCHES = {"cpu": 1, "cuda": 20}
"""Per turn: a GPU's steps are short."""

SCORED_USERS = 4_096


@dataclass(frozen=True, kw_only=True)
class Table:
    """One results file."""

    name: str
    shape: str
    """A name of SHAPES."""

    contestants: tuple[str, ...]
    mode: str = "train"
    """As of a benchmark; or `score`, which recommends to all users of a file."""

    share: float
    """Of the time, in proportion to those of the other tables."""


COMPILED = "precision=bf16,compile=inductor"
TABLES = (
    Table(
        name="130m",
        shape="130m",
        share=4,
        contestants=(
            f"full_softmax:{COMPILED}",
            f"bert_for_masked_lm:{COMPILED}",
            "full_softmax",
            "full_softmax:precision=bf16",
            "full_softmax:precision=fp16",
            "full_softmax:compile=inductor",
            "full_softmax:precision=fp16,compile=inductor",
            f"full_softmax:adapter=lora,{COMPILED}",
            f"full_softmax:adapter=ilora,{COMPILED}",
            "full_softmax:adapter=lora",
            "full_softmax:adapter=ilora",
        ),
    ),
    Table(
        name="130m-batches",
        shape="130m",
        share=1.5,
        contestants=tuple(
            f"{objective}:batch_size={size},{COMPILED}"
            for objective in ("full_softmax", "sampled_softmax")
            for size in (1_024, 4_096)
        ),
    ),
    Table(
        name="130m-evaluate",
        shape="130m",
        mode="evaluate",
        share=0.7,
        contestants=(
            "full_softmax",
            "bert_for_masked_lm",
        ),
    ),
    Table(name="130m-score", shape="130m", mode="score", share=0.8, contestants=()),
    Table(
        name="85m",
        shape="85m",
        share=1.5,
        contestants=(
            "full_softmax",
            f"full_softmax:{COMPILED}",
            f"full_softmax:adapter=lora,{COMPILED}",
            f"full_softmax:adapter=ilora,{COMPILED}",
        ),
    ),
    Table(
        name="430m",
        shape="430m",
        share=2,
        contestants=(
            f"full_softmax:{COMPILED}",
            "full_softmax",
            f"full_softmax:adapter=lora,{COMPILED}",
            f"full_softmax:adapter=ilora,{COMPILED}",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure, on what, for how long."""

    workload: Workload
    seconds: float
    batch_size: int = 256
    rounds: int = 5
    threads: int = 1
    tables: Sequence[Table] = TABLES
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.seconds < LEAST_SECONDS:
            raise ValueError(
                f"--seconds must be at least {LEAST_SECONDS}, as a process takes about as long to "
                f"start, got {self.seconds}"
            )


def run_sweep(sweep: Sweep, folder: Path) -> Iterator[tuple[Table, dict[str, Any] | None]]:
    """Measure one table after the other, and write a results file of each.

    Args:
        sweep: What to measure.
        folder: Gets a file per table and `sweep.json`, which says what was left out.

    Yields:
        Each table with what was measured; None where there was no time for it.
    """
    accelerator = Accelerator()
    origin, kind = provenance(accelerator), accelerator.device.type
    device = name_device(origin["device"], sweep.threads)
    end, left_out = sweep.clock() + sweep.seconds, {}
    for place, table in enumerate(sweep.tables):
        shares = sum(each.share for each in sweep.tables[place:])
        left = end - sweep.clock()
        seconds = left * table.share / shares
        if left < LEAST_SECONDS:
            left_out[table.name] = "there was no time left"
            yield table, None
            continue
        results = measure_table(table, sweep, max(seconds, LEAST_SECONDS), accelerator)
        left_out |= {
            f"{table.name}: {each['label']}": each["failure"]
            for each in results.get("summary", ())
            if each["failure"]
        }
        left_out |= {
            f"{table.name}: {label}": "fp16 needs a GPU" for label in unfit_contestants(table, kind)
        }
        path = folder / f"{sweep.workload.name}-{table.name}-{device}.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        yield table, results
    summary = {"kind": "sweep", "seconds": sweep.seconds, "left_out": left_out, **origin}
    (folder / "sweep.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def measure_table(
    table: Table, sweep: Sweep, seconds: float, accelerator: Accelerator
) -> dict[str, Any]:
    """Measure a table in about so many seconds; what does not fit is noted as a failure."""
    if table.mode == "score":
        return measure_scoring(table, sweep, accelerator)
    kind = accelerator.device.type
    unfit = unfit_contestants(table, kind)
    tasks = parse_contestants(
        [label for label in table.contestants if label not in unfit],
        workload=sweep.workload,
        shape=SHAPES[table.shape],
        batch_size=sweep.batch_size,
    )
    plan = Plan(
        mode=table.mode,
        rounds=sweep.rounds,
        batches=BATCHES[kind] if table.mode == "train" else 1,
        warmup_batches=3 if kind == "cuda" else 1,
        threads=sweep.threads,
        seconds=seconds,
    )
    return collect_results(run_tournament(tasks, plan), plan, accelerator)


def measure_scoring(table: Table, sweep: Sweep, accelerator: Accelerator) -> dict[str, Any]:
    """Recommend to all users of a file, beside ranking a target for each."""
    shape, settings = SHAPES[table.shape], Settings(batch_size=1)  # nothing is trained
    workload = sweep.workload
    task = Task(contestant="full_softmax", workload=workload, shape=shape, settings=settings)
    users = min(SCORED_USERS, workload.num_histories)
    return {
        "kind": "serving",
        "workload": asdict(workload),
        "shape": asdict(shape),
        "batch": measure_batch(task, users, rounds=1, device=accelerator.device),
        **provenance(accelerator),
    }


def unfit_contestants(table: Table, kind: str) -> list[str]:
    """Labels of those that this kind of device cannot run."""
    return [] if kind == "cuda" else [each for each in table.contestants if "fp16" in each]
