"""Push a folder to a hub: a model or adapter with all that belongs to it, or a prepared dataset.

bert4rec push runs/shop/model ann/shop --private
bert4rec push data/shop ann/shop-purchases

The token is that of `hf auth login`, or HF_TOKEN. A second push of the same makes no commit.
"""

from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, push, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument("folder", type=Path, help="folder of a model, an adapter or a dataset")
    parser.add_argument("repository", help="user/name, made where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make it private")
    parser.add_argument("--revision", help="branch to push to, made where there is none")
    parser.add_argument("--base", help="repository of the base model of an adapter")
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
