"""Write a model or adapter as an ONNX file that recommends by itself, checked against torch.

bert4rec export runs/shop/model --onnx runs/shop/onnx
bert4rec export runs/shop/model --onnx runs/shop/int8 --precision int8 --dataset data/shop

The file contains the model, the filter of seen items, a mask of candidates and the top-k search.
Less than single precision costs accuracy, so it needs a dataset; the loss is measured on its test.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser

PRECISIONS = ("float32", "float16", "int8")


def export(options: argparse.Namespace) -> list[str]:
    """Check the options, export, and print the results.

    Raises:
        ValueError: The export is refused, or a package is missing.
    """
    if options.precision != "float32" and options.dataset is None:
        raise ValueError(
            f"--precision {options.precision} costs accuracy; give a prepared dataset with "
            "--dataset, to measure how much on its test"
        )
    try:
        from bert4rec_hf.serving.export import export_onnx
    except ImportError as error:
        raise ValueError(f"{error}; pip install 'bert4rec_hf[onnx]'") from error
    split = None
    if options.dataset:
        from bert4rec_hf.experiment.measurement import check_vocabulary
        from bert4rec_hf.hub.dataset_repository import open_dataset

        dataset = open_dataset(options.dataset)
        check_vocabulary(options.model, dataset)
        split = dataset.test
    done = export_onnx(
        options.model, options.onnx, k=options.k, precision=options.precision, split=split
    )
    size = sum(path.stat().st_size for path in done.path.parent.glob("model.onnx*"))
    lines = [
        f"{done.path}: {size / 1e6:.1f} MB, {options.precision}",
        f"scores of onnxruntime and torch differ by {done.largest_difference:.1e} at most",
    ]
    if split is not None:
        change = f" ({done.after / done.before - 1:+.2%})" if done.before else ""
        lines.append(
            f"ndcg@10 on {len(split):,} test users: {done.before:.4f} in float32, "
            f"{done.after:.4f} in {options.precision}{change}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, export, report."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", type=Path, help="a model or adapter folder")
    add(
        "--onnx", type=Path, required=True, metavar="FOLDER", help="folder to write; must not exist"
    )
    add("-k", type=int, default=20, help="items recommended per history")
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="number format of the stored weights",
    )
    add("--dataset", type=Path, help="a prepared dataset, to measure the NDCG of the file")
    options = parser.parse_args(arguments)

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: folders load in a moment
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        lines = export(options)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
