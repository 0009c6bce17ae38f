"""Render the committed cards, tables and plots from the files of model_cards/results/.

bert4rec report
"""

from collections.abc import Sequence

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, render, list what was written."""
    parser = command_parser(__spec__.name, __doc__)
    parser.parse_args(arguments)

    try:
        from bert4rec_hf.lab.cards.render import ROOT, render_all

        for path in render_all():
            print(path.relative_to(ROOT))
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(2, f"error: {error}; pip install 'bert4rec_hf[plots]'\n")


if __name__ == "__main__":
    main()
