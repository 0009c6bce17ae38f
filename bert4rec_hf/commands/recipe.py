"""Choose the settings for a prepared dataset, and write them as an experiment to train.

bert4rec recipe data/purchases --output purchases.yaml
bert4rec train purchases.yaml --output runs/purchases

Settings that depend on the dataset are computed from its training part; see configs/README.md.
"""

from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, choose, write."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("dataset", type=Path, help="a prepared dataset folder")
    parser.add_argument("--output", type=Path, required=True, help="a new YAML file")
    parser.add_argument("--name", help="name of the dataset, for the card (default: the folder's)")
    parser.add_argument("--license", default="unknown", help="license of the dataset, for the card")
    options = parser.parse_args(arguments)

    import yaml

    from bert4rec_hf.hub.dataset_repository import open_dataset
    from bert4rec_hf.recipe import choose_settings

    try:
        dataset = open_dataset(options.dataset)
        train = dataset.train
        settings = choose_settings(len(train), len(train.values), dataset.num_items)
        sections = {
            "data": {"dataset": str(options.dataset)} | settings.pop("data"),
            **settings,
            "evaluation": {"ks": [5, 10, 20]},
            "card": {
                "dataset_name": options.name or options.dataset.resolve().name,
                "dataset_license": options.license,
            },
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("x", encoding="utf-8") as file:
            yaml.safe_dump(sections, file, sort_keys=False, allow_unicode=True)
    except FileExistsError:
        parser.exit(2, f"error: {options.output} exists; choose another --output or remove it\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"experiment: {options.output}")


if __name__ == "__main__":
    main()
