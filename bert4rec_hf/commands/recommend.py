"""Recommend items for a history of raw items, oldest first.

python scripts/recommend.py runs/synthetic/model item-003 item-007
"""

import argparse
from collections.abc import Sequence

from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.serving.recommender import UNKNOWN_ITEMS, Recommender


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, recommend, print."""
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder, or the name of a model on a hub")
    parser.add_argument("items", nargs="+", help="the history: raw items, oldest first")
    parser.add_argument("-k", type=int, default=10, help="how many items to recommend")
    parser.add_argument("--include-seen", action="store_true", help="items of the history, too")
    parser.add_argument("--unknown", choices=UNKNOWN_ITEMS, default="error")
    options = parser.parse_args(arguments)
    try:
        recommendations = Recommender.from_pretrained(options.model).recommend(
            options.items,
            options.k,
            exclude_seen=not options.include_seen,
            unknown=options.unknown,
        )
    except KeyError as error:
        parser.exit(2, f"error: {error.args[0]}\n")
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {options.model}: {error}\n")
    for place, (item, score, title) in enumerate(recommendations, start=1):
        print(f"{place:>3}  {score:8.4f}  {item}" + (f"  {title}" if title else ""))


if __name__ == "__main__":
    main()
