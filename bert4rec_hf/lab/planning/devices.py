"""What devices can do: as measured here, or at best by what their makers say.

Work is operations and bytes, and time is taken to be their sum at two rates. The rates of measured
devices are fitted to the committed results, see `comparison`; of others there are public peaks
only, which nothing reaches.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from .step import Work

MEASURED = Path(__file__).parent / "measured.json"
"""What was measured, by device; written by `comparison` from the results of a checkout."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The maker's figures for a GPU, dense (without sparsity)."""

    name: str
    memory_bytes: float
    bytes_per_second: float
    operations: dict[str, float]
    """Per second, by mixed precision; `no` without TF32, which torch leaves off by default."""

    source: str


PEAKS: dict[str, Peak] = {
    "h100": Peak(
        name="NVIDIA H100 SXM",
        memory_bytes=80e9,
        bytes_per_second=3.35e12,
        operations={"no": 67e12, "bf16": 989.5e12, "fp16": 989.5e12},
        source="NVIDIA H100 Tensor Core GPU datasheet",
    ),
    "h200": Peak(
        name="NVIDIA H200 SXM",
        memory_bytes=141e9,
        bytes_per_second=4.8e12,
        operations={"no": 67e12, "bf16": 989.5e12, "fp16": 989.5e12},
        source="NVIDIA H200 Tensor Core GPU datasheet",
    ),
    "a100": Peak(
        name="NVIDIA A100 80GB SXM",
        memory_bytes=80e9,
        bytes_per_second=2.039e12,
        operations={"no": 19.5e12, "bf16": 312e12, "fp16": 312e12},
        source="NVIDIA A100 Tensor Core GPU datasheet",
    ),
    "l4": Peak(
        name="NVIDIA L4",
        memory_bytes=24e9,
        bytes_per_second=300e9,
        operations={"no": 30.3e12, "bf16": 121e12, "fp16": 121e12},
        source="NVIDIA L4 Tensor Core GPU datasheet",
    ),
    "t4": Peak(
        name="NVIDIA T4",
        memory_bytes=16e9,
        bytes_per_second=320e9,
        operations={"no": 8.1e12, "fp16": 65e12},
        source="NVIDIA T4 Tensor Core GPU datasheet",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a device is."""

    seconds_per_operation: float
    seconds_per_byte: float

    def seconds(self, work: Work) -> float:
        """What work takes, one kind after the other."""
        return sum(self._parts(work))

    def bound(self, work: Work) -> float:
        """What work takes at least, as both kinds can be done at the same time."""
        return max(self._parts(work))

    def _parts(self, work: Work) -> tuple[float, float]:
        return work.operations * self.seconds_per_operation, work.bytes * self.seconds_per_byte


def fit_rates(works: Sequence[Work], seconds: Sequence[float]) -> Rates:
    """Find the two rates that explain what was measured, with the least relative error.

    Args:
        works: What was done in each measurement.
        seconds: What each took.

    Returns:
        Rates; one kind costs nothing where the other explains everything.
    """
    shares = np.array(works) / np.array(seconds)[:, None]  # each is to sum to 1
    scale = shares.max(axis=0)
    costs = nnls(shares / scale, np.ones(len(seconds)))[0] / scale  # seconds per unit
    return Rates(seconds_per_operation=costs[0], seconds_per_byte=costs[1])


def peak_rates(device: str, precision: str, share: float = 1.0) -> Rates:
    """A share of what the maker promises.

    Raises:
        ValueError: There is no figure for the precision.
    """
    peak = PEAKS[device]
    if precision not in peak.operations:
        raise ValueError(
            f"{peak.name} has no {precision}; choose --precision of {', '.join(peak.operations)}"
        )
    return Rates(
        seconds_per_operation=1 / (share * peak.operations[precision]),
        seconds_per_byte=1 / (share * peak.bytes_per_second),
    )


def name_device(described: dict, threads: int) -> str:
    """The name that results of a device go by: that of PEAKS, or of so many CPU threads.

    >>> name_device({"type": "cuda", "name": "NVIDIA H100 80GB HBM3"}, threads=8)
    'h100'
    >>> name_device({"type": "cpu", "name": "AMD EPYC"}, threads=2)
    'cpu2'
    """
    if described["type"] == "cpu":
        return f"cpu{threads}"
    words = described["name"].lower().replace("-", " ").split()
    return next((name for name in PEAKS if name in words), described["name"].lower())


def read_measured() -> dict:
    """What is known of devices that were measured.

    Returns:
        `rates` by device and precision, each with those of Rates, the `devices` and the number of
        `results` behind them, and the `spread` of measured over predicted times; and `preparing`,
        per row.
    """
    return json.loads(MEASURED.read_text(encoding="utf-8"))
