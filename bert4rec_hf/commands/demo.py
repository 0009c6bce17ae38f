"""Open a page to try a model: pick items by title, see recommendations and the reasons for them.

bert4rec demo runs/shop/model --port 7860
bert4rec demo user/shop --space runs/shop-space && bert4rec push runs/shop-space user/shop-demo

With --space no page opens; the files of a Space are written instead, which push then publishes.
"""

from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, show until stopped."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", help="folder of a model or an adapter, or its name on a hub")
    add(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 accepts connections from other machines (default: %(default)s)",
    )
    add("--port", type=int, default=7860)
    add(
        "--space",
        type=Path,
        metavar="FOLDER",
        help="write the files of a Space for the model to this folder",
    )
    options = parser.parse_args(arguments)
    try:
        from bert4rec_hf.hub.pull import is_repository
        from bert4rec_hf.serving.demo import load_demo, write_space

        if options.space and not is_repository(options.model):
            raise ValueError(
                f"a Space needs a model on a hub, such as user/shop, got {options.model!r}; push "
                "the folder first"
            )
        if options.space:
            write_space(options.space, options.model)
            print(f"Space: {options.space}")
            return
        page = load_demo(options.model)
    except ModuleNotFoundError as error:
        parser.exit(2, f"error: {error}; pip install 'bert4rec_hf[demo]'\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    page.launch(server_name=options.host, server_port=options.port, quiet=True)


if __name__ == "__main__":
    main()
