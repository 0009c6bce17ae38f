"""Mix item neighbors into a trained model, with the weight that is best on validation.

bert4rec neighbors runs/shop/model --dataset data/shop --output runs/shop/with-neighbors

The neighbors of an item are the items that occur close to it in the training histories. Counting
them takes seconds and replaces neighbors that the model already has; the network is not trained
again. Their weight, one of six or zero, is chosen by NDCG@10 on at most 5,000 histories of the
validation split. The new folder is used like any model folder.
"""

from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, count and weigh, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("folder", type=Path, help="folder of a model")
    parser.add_argument(
        "--dataset", type=Path, required=True, help="the prepared dataset that it was trained on"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; must not exist"
    )
    parser.add_argument(
        "--num-neighbors", type=int, default=50, help="neighbors per item (default: %(default)s)"
    )
    options, settings = parser.parse_known_args(arguments)

    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    from bert4rec_hf.experiment.neighbors import write_with_neighbors

    disable_progress_bar()  # of transformers: folders load in a moment
    try:
        found = write_with_neighbors(
            options.folder, options.dataset, options.output, options.num_neighbors, settings
        )
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print("weight  ndcg@10 on validation")
    for weight, metric in found.items():
        print(f"{weight:>6}  {metric:.4f}")
    best = max(found, key=found.get)
    kept = "neighbors do not help and are left out" if best == "0" else f"kept: weight {best}"
    print(f"{kept}; written to {options.output}")


if __name__ == "__main__":
    main()
