"""Serve a model over HTTP: recommendations for histories, similar items, adapters by name.

bert4rec serve runs/shop/model --port 8000
bert4rec serve runs/shop/model --adapter summer=runs/summer/adapter --host 0.0.0.0

POST /recommend {"items": ["item-0410"], "k": 5}, POST /similar {"item": "item-0410"}, GET /health;
GET /docs describes them all. Requests that arrive at the same time are answered in one batch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from .parser import command_parser


def parse_adapters(pairs: Sequence[str]) -> dict[str, str]:
    """Read NAME=FOLDER pairs.

    Raises:
        ValueError: One is no pair, or a name comes twice.
    """
    adapters: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--adapter must be NAME=FOLDER, got {pair!r}")
        if name in adapters:
            raise ValueError(f"--adapter {name} is given twice")
        adapters[name] = folder
    return adapters


def build(options: argparse.Namespace) -> Any:
    """Load the model and make the server.

    Raises:
        ValueError: An option is wrong, the model cannot be loaded, or a package is missing.
    """
    try:
        from bert4rec_hf.serving.server import Limits, build_app, load_recommenders
    except ImportError as error:
        raise ValueError(f"{error}; pip install 'bert4rec_hf[serve]'") from error
    limits = {
        field.name: value
        for field in fields(Limits)
        if (value := getattr(options, field.name)) is not None
    }
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    recommenders = load_recommenders(options.model, parse_adapters(options.adapter))
    return build_app(recommenders, Limits(**limits))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, serve until stopped."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("model", help="a model folder, or the name of a model on a hub")
    add(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 accepts connections from other machines (default: %(default)s)",
    )
    add("--port", type=int, default=8000)
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter and the name that requests use for it; may be repeated",
    )
    add = parser.add_argument_group("limits of a request").add_argument
    add("--max-items", type=int, help="items per history (default: 1,000)")
    add("--max-name-length", type=int, help="characters per item (default: 256)")
    add("--max-k", type=int, help="items recommended (default: 100)")
    add("--max-body-bytes", type=int, help="bytes per request (default: 1,000,000)")
    add("--max-waiting", type=int, help="requests waiting at a time (default: 1,000)")
    options = parser.parse_args(arguments)

    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: folders load in a moment
    try:
        app = build(options)
    except (OSError, SafetensorError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    import uvicorn

    uvicorn.run(app, host=options.host, port=options.port, access_log=False)


if __name__ == "__main__":
    main()
