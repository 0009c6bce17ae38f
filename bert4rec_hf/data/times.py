"""Timestamps of any usual kind become seconds since 1970, UTC."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Name of a unit → ticks per second."""

DURATIONS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
"""Letter → seconds."""

SMALLEST_SECONDS = 1e8
"""March 1973. What is smaller may be a counter, of which the unit does not matter."""

LARGEST_SECONDS = 1e11
"""The year 5138, or March 1973 in milliseconds; the bounds of the units are 1,000 apart."""

SIZE_BOUNDS = [SMALLEST_SECONDS, *(LARGEST_SECONDS * 1000**power for power in range(3))]
"""Where seconds, milliseconds, microseconds and nanoseconds begin."""

DATE_FORMATS = tuple(
    f"%Y-%m-%d{letter}{time}"
    for letter in "T "
    for time in ("%H:%M:%S%.f%#z", "%H:%M:%S%.f", "%H:%M:%S%.f UTC", "%H:%M", "%H:%M%#z")
) + ("%Y-%m-%d",)
"""ISO 8601, with and without time, zone and T."""


class TimeReader:
    """Reads a column of times block by block; of which kind they are, the first value says.

    Args:
        time_format: A unit or a pattern of strptime, empty to take numbers or ISO dates.
    """

    def __init__(self, time_format: str = ""):
        self.formats: tuple[str, ...] | None = (time_format,) if time_format else None
        if time_format in UNITS:
            self.formats = ()

    @property
    def reads_dates(self) -> bool:
        """Whether the values are dates, so that they come as seconds."""
        return bool(self.formats)

    @property
    def kind(self) -> str:
        """What a value must be."""
        if not self.formats:
            return "a number"
        if self.formats[0] in DATE_FORMATS:
            return "an ISO date like 2015-03-01T10:00:00Z"
        return f"a date as {self.formats[0]}"

    def read(self, column: pl.Series) -> pl.Series:
        """Read a block.

        Args:
            column: Texts without blanks around them, numbers or datetimes; null where missing.

        Returns:
            Seconds where they are dates, else the numbers; null where a value cannot be read.
        """
        if isinstance(column.dtype, pl.Date | pl.Datetime):
            self.formats = DATE_FORMATS
            return column.dt.epoch("us") / 1e6
        if column.dtype != pl.String:
            self.formats = self.formats or ()
            return column.cast(pl.Float64).fill_nan(None)
        if self.formats is None and column.null_count() < len(column):
            first = column.drop_nulls().head(1)
            is_number = first.cast(pl.Float64, strict=False).null_count() == 0
            self.formats = () if is_number else DATE_FORMATS
        if self.formats:
            return self._read_dates(column)
        numbers = column.cast(pl.Float64, strict=False)
        return numbers.set(numbers.is_finite().not_(), None)

    def _read_dates(self, column: pl.Series) -> pl.Series:
        """Try the formats one after the other, that of the last block first."""
        seconds = pl.Series([None], dtype=pl.Float64).new_from_index(0, len(column))
        left = column
        for time_format in self.formats:
            if left.null_count() == len(left):
                break
            moments = left.str.to_datetime(
                time_format, time_unit="us", time_zone="UTC", strict=False
            )
            if moments.null_count() < len(moments):
                self.formats = (time_format, *(f for f in self.formats if f != time_format))
            seconds = seconds.fill_null(moments.dt.epoch("us") / 1e6)
            left = left.set(seconds.is_not_null(), None)
        return seconds


def recognize_unit(times: np.ndarray, declared: str) -> tuple[str, int | None]:
    """Tell the unit of times by their size.

    Args:
        times: (interactions,) numbers; what is 0 or negative says nothing.
        declared: The unit of numbers that may be counters.

    Returns:
        Name of the unit, and the place of a time that is of another one, if there is any.
    """
    sizes = time_sizes(times)
    unit, expected = choose_unit(np.bincount(sizes + 1, minlength=len(SIZE_BOUNDS) + 2), declared)
    is_other = ~np.isin(sizes, expected)
    return unit, int(is_other.argmax()) if is_other.any() else None


def time_sizes(times: np.ndarray) -> np.ndarray:
    """(interactions,) how many of SIZE_BOUNDS each time reaches, -1 where it is 0 or negative."""
    sizes = np.searchsorted(SIZE_BOUNDS, times, side="right").astype(np.int8)
    sizes[times <= 0] = -1
    return sizes


def choose_unit(counts: Sequence[int], declared: str) -> tuple[str, list[int]]:
    """Take the unit of most times.

    Args:
        counts: (sizes + 1,) times of each size, of -1 first.
        declared: The unit of numbers that may be counters.

    Returns:
        Name of the unit, and the sizes that its times may have.
    """
    of_units = list(counts[2:])
    if not any(of_units):
        return declared, [-1, 0]
    unit = of_units.index(max(of_units))
    return list(UNITS)[unit], [-1, unit + 1, *([0] if unit == 0 else [])]


def are_calendar_days(times: np.ndarray) -> bool:
    """Tell whether all times are numbers like 20150301."""
    if times.min() < 19_000_101 or times.max() > 21_001_231:
        return False
    return bool(is_calendar_day(times).all())


def is_calendar_day(times: np.ndarray) -> np.ndarray:
    """(interactions,) whether each time is a number like 20150301."""
    year, day = np.divmod(times, 10_000)
    month, day = np.divmod(day, 100)
    limits = ((year, 1900, 2100), (month, 1, 12), (day, 1, 31))
    return np.logical_and.reduce([(low <= part) & (part <= high) for part, low, high in limits])


def note_times(unit: str, first: float, last: float, *, are_days: bool) -> str:
    """Say what times were taken for.

    Args:
        unit: Name of a unit, or dates.
        first: Seconds, as the next one.
        last: The latest.
        are_days: Whether all of them, before they were scaled, may be calendar days.
    """
    note = f"times: {unit}, from {write_date(first)} to {write_date(last)} UTC"
    if unit == "seconds" and are_days:
        note += "; warning: do they mean calendar days? Then give --timestamp-format %Y%m%d"
    return note


def read_duration(text: str, setting: str) -> float:
    """Read a span of time as seconds: a number and s, m, h, d or w.

    >>> read_duration("1.5d", "gap")
    129600.0

    Raises:
        ValueError: It is none.
    """
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * DURATIONS[unit]
    except (ValueError, KeyError):
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{setting} must be a span of time like 12h, 1d or 2w, got {text!r}")
    return seconds


def write_date(seconds: float) -> str:
    """Write a moment as ISO date and time in UTC, as far as calendars reach."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return f"{seconds:.0f} s after 1970"
    return moment.replace(microsecond=0, tzinfo=None).isoformat(sep=" ")
