"""Progress of long work: a bar on a terminal, a line every few per cent elsewhere."""

import sys
from typing import TextIO

from tqdm import tqdm

LINES = 20
"""Lines of a work that is not shown on a terminal: one every five per cent."""


def show_progress(
    total: int, unit: str, *, initial: int = 0, is_shown: bool = True, stream: TextIO | None = None
) -> tqdm:
    """Make a progress bar that is also readable in a log file.

    Args:
        total: Units of work.
        unit: What one is called.
        initial: Units done before, by an interrupted process.
        is_shown: Whether this process shows it; one of several does.
        stream: Where to; the standard error output when None.
    """
    stream = sys.stderr if stream is None else stream
    kind = tqdm if stream.isatty() else LineProgress
    return kind(
        total=total,
        unit=unit,
        initial=initial,
        file=stream,
        dynamic_ncols=stream.isatty(),
        disable=not is_shown,
    )


class LineProgress(tqdm):
    """tqdm's account of the work, written as whole lines, at most LINES of them."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        part = self.n * LINES // self.total if self.total else 0
        if part == getattr(self, "_last_part", None):
            return True
        self._last_part = part
        rate = self.format_dict["rate"] or 0
        left = self.format_interval((self.total - self.n) / rate) if rate else "?"
        postfix = f", {self.postfix}" if self.postfix else ""
        share = self.n / self.total if self.total else 1
        self.fp.write(
            f"{self.n:,} of {self.total:,} {self.unit}s ({share:.0%}), "
            f"{self.format_interval(self.format_dict['elapsed'])} so far, {left} left{postfix}\n"
        )
        self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.display()
        self.disable = True
