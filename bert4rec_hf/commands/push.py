"""Push a folder to a hub: a model, an adapter or a prepared dataset, with everything it needs.

bert4rec push runs/shop/model ann/shop --private
bert4rec push data/shop ann/shop-purchases

The token comes from `hf auth login` or HF_TOKEN. Pushing an unchanged folder makes no commit.
"""

from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, push, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("folder", type=Path, help="model, adapter or dataset folder")
    parser.add_argument("repository", help="user/name; created if it does not exist")
    parser.add_argument(
        "--private", action="store_true", default=None, help="make the repository private"
    )
    parser.add_argument("--revision", help="branch to push to; created if it does not exist")
    parser.add_argument("--base", help="repository of an adapter's base model")
    options = parser.parse_args(arguments)

    from bert4rec_hf.hub.push import push

    try:
        address = push(
            options.folder,
            options.repository,
            private=options.private,
            revision=options.revision,
            base=options.base,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"pushed: {address}")


if __name__ == "__main__":
    main()
