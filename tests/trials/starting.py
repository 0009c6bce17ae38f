"""A command in a process of its own, which begins with everything imported that it needs."""

import os
import resource
import signal
import sys
from pathlib import Path

PRELOADED = [
    "bert4rec_hf.commands.main",
    "bert4rec_hf.data.preparation",
    "bert4rec_hf.experiment.replay",
    "bert4rec_hf.lab.cards.plots",
    "bert4rec_hf.lab.studies.scaling",
    "bert4rec_hf.lab.studies.tuning",
]


def run_command(arguments, log, limits):
    """Be the process: its own group, everything it says in a file, and no more than its limits.

    Args:
        arguments: Of `bert4rec`.
        log: The file.
        limits: By name of the resource, such as RLIMIT_NOFILE.
    """
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though the tests may run under nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(log).open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    from bert4rec_hf.commands.main import main

    sys.argv = ["bert4rec", *arguments]
    main(arguments)
