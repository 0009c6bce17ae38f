"""Say what training an experiment would take, before anything is prepared or rented.

bert4rec plan shop.yaml --items 10000000 --users 100000000 --interactions 2000000000 --device h100

Memory is what the check before every training estimates. Times of measured devices (cpu: one CPU
thread, cpu2: two) are by rates fitted to the committed results; of others they are bounds by the
maker's peak figures, and what these come to at an assumed share. Any setting can be overridden:
--model.hidden_size 256. The dataset of the experiment is not read.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, count, report."""
    parser = command_parser(__spec__.name, __doc__)
    add = parser.add_argument
    add("config", type=Path, help="YAML file of an experiment")
    add("--items", type=int, required=True, help="number of items")
    add("--users", type=int, required=True, help="number of users")
    add("--interactions", type=int, required=True, help="number of interactions")
    add("--device", default="cpu", help="cpu (one thread), cpu2, h100, h200, a100, l4 or t4")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="default: no (float32)")
    add(
        "--share",
        type=float,
        default=0.3,
        help="of a peak, assumed where nothing was measured (default: %(default)s)",
    )
    add("--output", type=Path, help="also write all counts to a new JSON file")
    options, settings = parser.parse_known_args(arguments)

    from bert4rec_hf.experiment.load import load_experiment
    from bert4rec_hf.lab.planning.plan import Size, make_plan, to_dict
    from bert4rec_hf.lab.planning.report import render_plan

    device = "cpu1" if options.device == "cpu" else options.device
    try:
        experiment = load_experiment(options.config, settings)
        size = Size(
            num_items=options.items,
            num_users=options.users,
            num_interactions=options.interactions,
        )
        plan = make_plan(experiment, size, device, options.precision)
        text = render_plan(plan, device, options.precision, options.share)
        if options.output:
            with options.output.open("x", encoding="utf-8") as file:
                json.dump(to_dict(plan), file, indent=2)
    except FileExistsError:
        parser.exit(2, f"error: {options.output} exists; choose another --output or remove it\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(text)


if __name__ == "__main__":
    main()
