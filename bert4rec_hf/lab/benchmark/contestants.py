"""Who can take part, by name; each is imported only in the process that runs it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from bert4rec_hf.lab.benchmark.task import Contestant, Settings, Task
from bert4rec_hf.lab.benchmark.workloads import Shape, Workload

# The imports stand inside, as an interpreter with one of the libraries need not have the others.


def bert4rec(task: Task) -> Contestant:
    """Ours, with the objective it is named by."""
    from bert4rec_hf.lab.benchmark.bert4rec import BERT4RecContestant

    return BERT4RecContestant(task, objective=task.contestant)


def bert_for_masked_lm(task: Task) -> Contestant:
    """BERT of transformers, padded, with dense logits."""
    from bert4rec_hf.lab.benchmark.bert_for_masked_lm import BertForMaskedLMContestant

    return BertForMaskedLMContestant(task)


def floor(task: Task) -> Contestant:
    """The products that the full softmax cannot do without."""
    from bert4rec_hf.lab.benchmark.floor import FloorContestant

    return FloorContestant(task, is_sampled=False)


def sampled_floor(task: Task) -> Contestant:
    """The products that an objective with negatives cannot do without."""
    from bert4rec_hf.lab.benchmark.floor import FloorContestant

    return FloorContestant(task, is_sampled=True)


def recbole(task: Task) -> Contestant:
    """RecBole's BERT4Rec with cross-entropy over the catalog."""
    from bert4rec_hf.lab.benchmark.peers.recbole import RecBoleContestant

    return RecBoleContestant(task)


def rectools(task: Task) -> Contestant:
    """RecTools' BERT4Rec with its softmax loss."""
    from bert4rec_hf.lab.benchmark.peers.rectools import RecToolsContestant

    return RecToolsContestant(task)


def replay_restricted(task: Task) -> Contestant:
    """RePlay's Bert4Rec with cross-entropy at masked positions only."""
    from bert4rec_hf.lab.benchmark.peers.replay import RePlayContestant

    return RePlayContestant(task, loss_type="CE_restricted")


def replay_sampled(task: Task) -> Contestant:
    """RePlay's Bert4Rec with cross-entropy over negatives that a step shares."""
    from bert4rec_hf.lab.benchmark.peers.replay import RePlayContestant

    return RePlayContestant(task, loss_type="CE", num_negatives=task.settings.num_negatives)


PEERS: dict[str, Callable[[Task], Contestant]] = {
    "recbole": recbole,
    "rectools": rectools,
    "replay_restricted": replay_restricted,
    "replay_sampled": replay_sampled,
}
"""Those that may need an interpreter of their own."""

CONTESTANTS: dict[str, Callable[[Task], Contestant]] = {
    "full_softmax": bert4rec,
    "sampled_softmax": bert4rec,
    "gbce": bert4rec,
    "bert_for_masked_lm": bert_for_masked_lm,
    "floor": floor,
    "sampled_floor": sampled_floor,
    **PEERS,
}

FLOORS = {"full_softmax": "floor", "sampled_softmax": "sampled_floor", "gbce": "sampled_floor"}
"""The floor under each of ours."""


def parse_contestants(
    texts: Sequence[str], *, workload: Workload, shape: Shape, batch_size: int
) -> dict[str, Task]:
    """Read contestants as the command line names them.

    >>> from bert4rec_hf.lab.benchmark.workloads import SHAPES, WORKLOADS
    >>> tasks = parse_contestants(
    ...     ["gbce", "floor:precision=bf16,dropout=0"],
    ...     workload=WORKLOADS["movielens"], shape=SHAPES["ml64"], batch_size=32,
    ... )
    >>> tasks["gbce"].settings.batch_size, tasks["floor:precision=bf16,dropout=0"].settings.dropout
    (32, 0.0)

    Args:
        texts: Names, each with settings of its own behind a colon or without.
        workload: What all of them train on.
        shape: Of all of them.
        batch_size: Of those that set none.

    Returns:
        Tasks by the given texts.

    Raises:
        ValueError: A name or a setting is unknown, or a value is of the wrong kind.
    """
    tasks = {}
    for text in texts:
        name, _, settings = text.partition(":")
        if name not in CONTESTANTS:
            raise ValueError(f"contestant must be one of {', '.join(CONTESTANTS)}, got {name!r}")
        values = {"batch_size": batch_size} | parse_settings(settings)
        tasks[text] = Task(
            contestant=name, workload=workload, shape=shape, settings=Settings(**values)
        )
    return tasks


def parse_settings(text: str) -> dict[str, Any]:
    """Read `setting=value` pairs with commas between them.

    >>> parse_settings("batch_size=64,precision=bf16")
    {'batch_size': 64, 'precision': 'bf16'}
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    values = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise ValueError(f"{name} is not a setting of a contestant; it has {', '.join(kinds)}")
        try:
            values[name] = kinds[name](value)
        except ValueError as error:
            raise ValueError(
                f"{name} must be of type {kinds[name].__name__}, got {value!r}"
            ) from error
    return values
