"""The argument parser shared by all commands.

Commands import what they need after parsing, so that `--help` answers at once.
"""

import argparse


def command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a command.

    Args:
        module: Name of its module, `__spec__.name`, which ends with that of the command.
        description: Shown as it stands.
    """
    return argparse.ArgumentParser(
        prog=f"bert4rec {module.rpartition('.')[2]}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
