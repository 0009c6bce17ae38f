"""The teachers of an experiment: checked before anything is written, then loaded."""

import dataclasses
import logging
from pathlib import Path

import torch
from accelerate import Accelerator

from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.config_file import read_config
from bert4rec_hf.hub.model_folder import find_base, load_weights
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.objectives import max_scores
from bert4rec_hf.training.memory import MemoryEstimate
from bert4rec_hf.training.run_folder import RUN_FILE
from bert4rec_hf.training.teachers import Teachers

from .build import SMALLEST_VOCABULARY, build_config, check_prefix_views
from .measurement import check_vocabulary
from .spec import Experiment

logger = logging.getLogger(__name__)


def check_teachers(experiment: Experiment) -> None:
    """Refuse teachers of a model that cannot learn what they expect.

    Raises:
        ValueError: Its objective is a sampled one, or it is trained beside neighbors.
    """
    if not experiment.training.teachers:
        return
    student = build_config(experiment, SMALLEST_VOCABULARY)
    if student.objective != "full_softmax":
        raise ValueError(
            "training.teachers need model.objective full_softmax, as a sampled one does not score "
            f"what they expect, got {student.objective}; change it, or leave teachers out"
        )
    if student.num_neighbors:
        raise ValueError(
            "training.teachers need a model that has no neighbors while it is trained, got "
            f"model.num_neighbors = {student.num_neighbors}; set training.added_neighbors instead"
        )


def identify_teachers(experiment: Experiment, dataset: PreparedDataset) -> list[str]:
    """Check the folders of `training.teachers`, and tell their weights.

    Raises:
        ValueError: One is an adapter, has another vocabulary, was trained on what the dataset holds
            out, or cannot read the views of the experiment.
    """
    folders = [fetch_folder(name) for name in experiment.training.teachers]
    for folder in folders:
        check_vocabulary(folder, dataset)
        if find_base(folder) is not None:
            raise ValueError(
                f"training.teachers names {folder}, which is an adapter; name folders of models"
            )
        check_dataset(folder, dataset)
        check_reading(folder, experiment, dataset)
    return [fingerprint_weights(folder) for folder in folders]


def check_dataset(folder: Path, dataset: PreparedDataset) -> None:
    """Refuse a teacher that may have learned what is held out; warn where that is not known.

    Raises:
        ValueError: It was trained on another dataset.
    """
    if not (len(dataset.validation) or len(dataset.test)):
        return
    path = folder.parent / RUN_FILE
    if not path.is_file():
        logger.warning(
            "training.teachers names %s, beside which no %s says what it was trained on; where "
            "that holds items of the validation or test split of %s, all metrics are too high",
            *(folder, RUN_FILE, dataset.folder),
        )
        return
    learned = read_json(path)["dataset_fingerprint"]
    if learned != dataset.fingerprint:
        raise ValueError(
            f"training.teachers names {folder}, which was trained on another dataset than "
            f"{dataset.folder} (fingerprints {learned} and {dataset.fingerprint}) and may know "
            "items that are held out; train it on this one"
        )


def check_reading(folder: Path, experiment: Experiment, dataset: PreparedDataset) -> None:
    """Refuse a teacher that cannot read what its student reads.

    Raises:
        ValueError: It answers elsewhere, reads less of a history, or no prefix views.
    """
    teacher, student = read_config(folder), build_config(experiment, dataset.vocab_size)
    if teacher.is_causal != student.is_causal:
        raise ValueError(
            f"training.teachers names {folder}, whose is_causal is {teacher.is_causal}, and that "
            f"of the experiment is {student.is_causal}: they answer at different positions; name "
            "teachers that are like their student in this"
        )
    if teacher.max_history_length < student.max_history_length:
        raise ValueError(
            f"training.teachers names {folder}, which reads {teacher.max_history_length} items of "
            f"a history, and its student reads {student.max_history_length}; lower "
            "model.max_history_length to that"
        )
    try:
        check_prefix_views(experiment.data, teacher)
    except ValueError as error:
        raise ValueError(f"training.teachers names {folder}, and {error}") from error


def load_teachers(experiment: Experiment, accelerator: Accelerator) -> Teachers | None:
    """Load the folders of `training.teachers`, if any, onto the device of this process."""
    training, device = experiment.training, accelerator.device
    if not training.teachers:
        return None
    models = [load_weights(fetch_folder(name)).to(device) for name in training.teachers]
    return Teachers(models, training.teacher_weight, max_scores(device))


def add_memory(estimate: MemoryEstimate, experiment: Experiment) -> MemoryEstimate:
    """Add what teachers take: their weights, and a second gradient of the student's item table."""
    names = experiment.training.teachers
    if not names:
        return estimate

    def count(config: BERT4RecConfig) -> int:
        with torch.device("meta"):
            model = BERT4RecForMaskedItemModeling(config)
        return sum(each.nbytes for each in [*model.parameters(), *model.buffers()])

    configs = [read_config(fetch_folder(name)) for name in names]
    hidden_size = build_config(experiment, SMALLEST_VOCABULARY).hidden_size
    return dataclasses.replace(
        estimate,
        parameters=estimate.parameters + sum(map(count, configs)),
        gradients=estimate.gradients + 4 * configs[0].vocab_size * hidden_size,
    )
