"""Whether recommendations have collapsed onto a handful of items, whatever the history.

A model that always shows the same items can have a fair hit rate, as popular items are met often;
objectives with drawn negatives are known to end there at millions of items. It shows in how many
different items a model recommends, beside how many its users went for.

The rule: each history is shown ten items and has one target. Lists that follow the histories name
at least as many different items as there are different targets, mostly several times as many; a
list of the most popular items names ten. Fewer than a tenth of the different targets is a collapse.
Where there are less than a hundred of them nothing can be said, as ten items are always named.
"""

from typing import NamedTuple

SHOWN = 10
"""Items of each list that count."""

MIN_RATIO = 0.1
"""Different items that are recommended, over different targets; fewer are a collapse."""


class Variety(NamedTuple):
    """How many different items there are among those recommended, and among those asked for."""

    num_recommended: int
    """Different items in the first SHOWN places of all lists."""

    num_targets: int
    """Different targets of the same histories."""

    num_items: int
    """Of the catalog."""

    @property
    def is_collapsed(self) -> bool:
        """Whether the recommendations are of a handful of items only."""
        return self.num_recommended < MIN_RATIO * self.num_targets

    def to_metrics(self) -> dict[str, float]:
        """For the log and the trackers, beside the metrics."""
        return {
            f"coverage@{SHOWN}": self.num_recommended / self.num_items,
            f"recommended_items@{SHOWN}": self.num_recommended,
            "is_collapsed": int(self.is_collapsed),
        }

    def to_dict(self) -> dict[str, int | bool]:
        """For the results."""
        return {**self._asdict(), "is_collapsed": self.is_collapsed}

    def __str__(self) -> str:
        return (
            f"the {SHOWN} best items of all histories are {self.num_recommended:,} different ones, "
            f"while their targets are {self.num_targets:,}"
        )
