"""A model as one ONNX file: histories in, the best items out; checked against torch."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir
import onnxruntime
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import cached_file

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.evaluation.metrics import ndcg
from bert4rec_hf.evaluation.ranking import HISTORIES_AT_ONCE
from bert4rec_hf.hub.model_folder import VOCABULARY_FILES, load_model
from bert4rec_hf.modeling import NUM_SPECIAL_IDS
from bert4rec_hf.serving.onnx_weights import PRECISIONS

FILE_NAME = "model.onnx"
INPUTS = ("histories", "exclude_seen", "is_candidate")
OUTPUTS = ("items", "scores")

MEASURED_AT = 10
"""Places that count where NDCG is measured."""

TOLERANCE = 1e-4
"""Share of the largest absolute score by which onnxruntime and torch may differ."""


class TopItems(nn.Module):
    """What is exported: the model, and around it the mask, the seen filter and the search.

    Args:
        model: Trained, in evaluation mode.
        k: How many items come out.
    """

    def __init__(self, model: nn.Module, k: int):
        super().__init__()
        self.model = model
        self.k = k
        config = model.config
        self.max_items, self.mask_id = config.max_history_length - 1, config.mask_token_id

    def forward(
        self, histories: Tensor, exclude_seen: Tensor, is_candidate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the best items of each history, best first.

        Args:
            histories: (batch, length) ids, oldest first, padded with 0 on the left; of any
                length: the newest items that the model can hold are read.
            exclude_seen: () whether all items of the history are left out.
            is_candidate: (vocab,) which items may be recommended.

        Returns:
            (batch, k) ids and (batch, k) scores; id 0 and score -inf where candidates ran out.
        """
        scores, items = self.score(histories, exclude_seen, is_candidate).topk(self.k)
        return items.masked_fill(scores == -torch.inf, 0), scores

    def score(self, histories: Tensor, exclude_seen: Tensor, is_candidate: Tensor) -> Tensor:
        """(batch, vocab) score of each item; -inf where it is not to be recommended."""
        length = histories.shape[1]
        kept = torch.sym_min(length, self.max_items)
        newest = histories.narrow(1, length - kept, kept)
        mask = torch.full_like(newest[:, :1], self.mask_id)
        states = self.model.next_item_states(torch.cat([newest, mask], dim=1))
        scores = nn.functional.linear(states, *self.model.read_head())
        if (neighbors := self.model.neighbors) is not None:
            # The model's own way to find the newest items, of packed ones too, has no ONNX form.
            count = torch.sym_min(kept, neighbors.num_recent_items)
            recent = newest.narrow(1, kept - count, count).flip(1)
            scores = neighbors.read(recent, states).mix(scores)
        is_item = torch.arange(scores.shape[1], device=scores.device) >= NUM_SPECIAL_IDS
        scores = scores.masked_fill(~(is_candidate & is_item), -torch.inf)
        return scores.scatter(1, torch.where(exclude_seen, histories, 0), -torch.inf)


class Export(NamedTuple):
    """What came of an export."""

    path: Path
    """The ONNX file."""

    largest_difference: float
    """Between a score of onnxruntime and of torch, in single precision."""

    before: float | None
    """NDCG of the file in single precision; None where there was nothing to measure it on."""

    after: float | None
    """NDCG of the file as it is stored."""


def export_onnx(
    name: str | Path,
    output: Path,
    *,
    k: int = 20,
    precision: str = "float32",
    split: Histories | None = None,
) -> Export:
    """Write a folder with the ONNX file, its vocabulary and titles.

    The file has the required input `histories`, and `exclude_seen` (true) and `is_candidate` (all
    true) that may be given; outputs are `items` and `scores`, see TopItems.

    Args:
        name: A folder of a model or adapter, or a name of a hub. Adapters are merged where the
            tuner can.
        output: The folder to write; it appears only when all in it is checked.
        k: How many items come out; all if there are fewer.
        precision: One of PRECISIONS, in which the weights are stored.
        split: Histories with targets, to measure what that costs.

    Raises:
        ValueError: The output exists, an option is out of range, the model cannot be loaded, or
            onnxruntime computes something else than torch.
    """
    if output.exists():
        raise ValueError(f"{output} exists; name another folder, or remove it")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    model = merge(load_model(name)).eval()
    graph = TopItems(model, min(k, model.config.num_items)).eval()
    unfinished = output.with_name(f".unfinished-{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        file = unfinished / FILE_NAME
        write_graph(graph, file)
        difference = compare_with_torch(file, graph)
        before = None if split is None else measure_ndcg(file, split)
        PRECISIONS[precision](file)
        after = None if split is None else measure_ndcg(file, split)
        copy_vocabulary(name, unfinished)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Export(output / FILE_NAME, difference, before, after)


def merge(model: nn.Module) -> nn.Module:
    """Fold an adapter into the weights where its tuner can; any other is exported as it is."""
    try:
        return model.merge_and_unload() if isinstance(model, PeftModel) else model
    except NotImplementedError:  # iLoRA mixes its experts anew for each history
        return model


def write_graph(graph: TopItems, path: Path) -> None:
    """Export, give the inputs their defaults, and save."""
    config = graph.model.config
    exclude_seen, is_candidate = np.array(True), np.ones(config.vocab_size, dtype=bool)
    histories = torch.tensor([[0, 2, 2], [2, 2, 2]])  # no dimension of 1, which would be fixed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            graph,
            (histories, torch.from_numpy(exclude_seen), torch.from_numpy(is_candidate)),
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=({0: "batch", 1: "length"}, {}, {}),
            verbose=False,
        )
    values = {value.name: value for value in program.model.graph.inputs}
    for name, default in zip(INPUTS[1:], (exclude_seen, is_candidate), strict=True):
        values[name].const_value = onnx_ir.tensor(default, name=name)
        program.model.graph.register_initializer(values[name])
    for part in [*program.model.graph.all_nodes(), *program.model.graph.initializers.values()]:
        part.metadata_props.clear()  # it says where on this machine the code lies
    program.model.metadata_props.update(
        k=str(graph.k), max_history_length=str(config.max_history_length)
    )
    program.save(path)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a file on the CPU, with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it warns of inputs with defaults, which are meant
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare_with_torch(path: Path, graph: TopItems, *, seed: int = 0) -> float:
    """Run the file on histories of several shapes, and compare with torch.

    Args:
        path: The ONNX file, in single precision.
        graph: What it was made of.
        seed: Of the histories and candidates.

    Returns:
        The largest difference of a score.

    Raises:
        ValueError: Scores differ by more than TOLERANCE, or other items are best.
    """
    generator = np.random.default_rng(seed)
    session = open_session(path)
    vocab_size, longest = graph.model.config.vocab_size, graph.max_items
    largest = 0.0
    for batch, length in ((1, 1), (3, longest), (2, 2 * longest + 3)):
        histories = generator.integers(NUM_SPECIAL_IDS, vocab_size, (batch, length))
        histories[0, : length // 2] = 0
        inputs = (
            histories,
            np.array(batch > 1),
            generator.random(vocab_size) < (1, 0.7)[batch % 2],
        )
        items, scores = session.run(None, dict(zip(INPUTS, inputs, strict=True)))
        with torch.inference_mode():
            of_all = graph.score(*map(torch.from_numpy, inputs))
        best = of_all.topk(graph.k).values.numpy()
        of_items = of_all.gather(1, torch.from_numpy(items)).numpy()  # padding scores -inf
        is_found = np.isfinite(best)
        difference = max(
            np.abs(np.where(is_found, scores, 0) - np.where(is_found, each, 0)).max(initial=0)
            for each in (best, of_items)
        )
        if (is_found != np.isfinite(scores)).any() or not difference <= TOLERANCE * np.abs(
            best[is_found]
        ).max(initial=0):
            raise ValueError(
                f"onnxruntime and torch differ by {difference:.2g} for {batch} histories of "
                f"{length} items; nothing was written, please report it"
            )
        largest = max(largest, float(difference))
    return largest


def measure_ndcg(path: Path, split: Histories) -> float:
    """NDCG@10 of a file (or at its k, if that is less), seen items left out.

    A target that is in its history counts as not found.

    Args:
        path: The ONNX file.
        split: Histories with targets.
    """
    session = open_session(path)
    ranks = []
    by_length = np.argsort(split.lengths, kind="stable")
    for start in range(0, len(by_length), HISTORIES_AT_ONCE):
        rows = by_length[start : start + HISTORIES_AT_ONCE]
        histories = pad_left([split[row] for row in rows])
        items = session.run(OUTPUTS[:1], {INPUTS[0]: histories})[0][:, :MEASURED_AT]
        is_target = items == split.targets[rows][:, np.newaxis]
        ranks.append(np.where(is_target.any(1), is_target.argmax(1) + 1, MEASURED_AT + 1))
    return ndcg(torch.from_numpy(np.concatenate(ranks)), MEASURED_AT).item()


def pad_left(histories: Sequence[np.ndarray]) -> np.ndarray:
    """(batch, length) int64 ids, zeros before them.

    >>> pad_left([np.array([7]), np.array([8, 9])]).tolist()
    [[0, 7], [8, 9]]
    """
    padded = np.zeros((len(histories), max(1, *map(len, histories))), dtype=np.int64)
    for row, history in zip(padded, histories, strict=True):
        row[len(row) - len(history) :] = history
    return padded


def copy_vocabulary(name: str | Path, folder: Path) -> None:
    """Copy vocabulary and titles of a model beside its file."""
    for file in VOCABULARY_FILES:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if path:
            shutil.copyfile(path, folder / file)
