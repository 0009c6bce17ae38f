import itertools
import shutil

import numpy as np
import pytest
import torch

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

onnxruntime = pytest.importorskip("onnxruntime")

from bert4rec_hf.commands.export import PRECISIONS as OFFERED  # noqa: E402
from bert4rec_hf.commands.main import main  # noqa: E402
from bert4rec_hf.serving import export as exporting  # noqa: E402
from bert4rec_hf.serving.export import (  # noqa: E402
    export_onnx,
    measure_ndcg,
    open_session,
    pad_left,
)
from bert4rec_hf.serving.onnx_weights import PRECISIONS  # noqa: E402

ITEMS = [f"item-{number:02}" for number in range(41)]
KINDS = {
    "paper": {},
    "modern": {
        "norm_first": True,
        "position_type": "rotary",
        "output_transform": False,
        "output_bias": False,
    },
    "neighbors": {"num_neighbors": 5, "num_recent_items": 3},
    "causal": {"is_causal": True, "position_origin": "newest", "tie_word_embeddings": False},
}


def save_model(path, seed=0, **settings):
    torch.manual_seed(seed)
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2,
        hidden_size=32,
        intermediate_size=40,
        max_history_length=6,
        initializer_range=0.3,
        **settings,
    )
    model = BERT4RecForMaskedItemModeling(config)
    if model.neighbors is not None:
        ids = torch.randint(2, config.vocab_size, model.neighbors.ids.shape)
        similarities = torch.rand(ids.shape)
        similarities[:2] = 0  # padding and mask have no neighbors
        model.neighbors.set_table(ids, similarities, model.neighbors.scales)
    model.save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "float32", k=7)


@pytest.fixture
def exported_before(exported, monkeypatch):
    """Writing, which takes seconds, copies the file of the first export."""
    monkeypatch.setattr(
        exporting, "write_graph", lambda graph, path: shutil.copyfile(exported.path, path)
    )


@pytest.fixture(scope="module")
def session(exported):
    return open_session(exported.path)


def to_ids(histories):
    return pad_left([np.array([ITEMS.index(item) + 2 for item in each]) for each in histories])


def check_answers(recommender, session, histories, **options):
    """Compare a file with the recommender, which packs histories and knows nothing of the file."""
    inputs = {"histories": to_ids(histories)}
    if "candidates" in options:
        inputs["is_candidate"] = np.zeros(len(ITEMS) + 2, dtype=bool)
        inputs["is_candidate"][to_ids([options["candidates"]])] = True
    if "exclude_seen" in options:
        inputs["exclude_seen"] = np.array(options["exclude_seen"])
    items, scores = session.run(None, inputs)
    for row, expected in enumerate(recommender.recommend(histories, k=7, **options)):
        actual = [ITEMS[number - 2] for number in items[row] if number]
        assert actual == [each.item for each in expected]
        assert scores[row][items[row] > 0] == pytest.approx(
            [each.score for each in expected], abs=1e-5
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclude_seen": False},
        {"candidates": ITEMS[3:20]},
        {"candidates": ITEMS[:4]},
    ],
    ids=str,
)
def test_the_file_recommends_what_the_recommender_does(model, session, options):
    histories = [
        ITEMS[:1],
        ITEMS[4:7],
        ITEMS[10:15],  # as long as the model reads
        ITEMS[20:33],  # longer: the oldest are not read, but seen
        [ITEMS[2], ITEMS[2]],
    ]
    check_answers(Recommender.from_pretrained(model), session, histories, **options)


def test_padding_and_mask_are_never_recommended(session):
    everything = {"is_candidate": np.ones(43, dtype=bool), "exclude_seen": np.array(False)}
    items, _ = session.run(None, {"histories": np.array([[0, 5]])} | everything)
    assert items.min() >= 2


def test_a_history_without_items_is_scored_by_the_mask_alone(model, session):
    items, _ = session.run(None, {"histories": np.zeros((1, 3), dtype=np.int64)})
    expected = Recommender.from_pretrained(model).recommend([[]], k=7, cold="mask")[0]
    assert [ITEMS[number - 2] for number in items[0]] == [each.item for each in expected]


def test_the_folder_has_the_vocabulary_and_the_file_says_its_settings(exported, session):
    names = {path.name for path in exported.path.parent.iterdir()}
    assert names == {"model.onnx", "tokenizer.json", "tokenizer_config.json"}
    settings = session.get_modelmeta().custom_metadata_map
    assert settings == {"k": "7", "max_history_length": "6"}
    assert b"bert4rec_hf/" not in exported.path.read_bytes()  # no paths of who exported


def test_ndcg_of_a_file_is_that_of_its_lists(session):
    generator = np.random.default_rng(0)
    lengths = np.array([1, 9, 3, 4, 6])
    values = generator.integers(2, 43, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = [values[start:stop] for start, stop in itertools.pairwise(offsets)]
    lists = [
        session.run(None, {"histories": row[np.newaxis].astype(np.int64)})[0][0] for row in rows
    ]
    missing = next(number for number in range(2, 43) if number not in lists[4])
    targets = np.array([lists[0][0], lists[1][2], lists[2][6], lists[3][1], missing], np.int32)
    expected = (1 + 1 / np.log2(4) + 1 / np.log2(8) + 1 / np.log2(3) + 0) / 5
    path = session._model_path
    assert measure_ndcg(path, Histories(values, offsets, targets)) == pytest.approx(expected)


def test_what_int8_costs_is_measured(model, exported_before, tmp_path):
    histories = Histories(
        np.arange(2, 32, dtype=np.int32), np.arange(0, 31, 3), np.arange(32, 42, dtype=np.int32)
    )
    done = export_onnx(model, tmp_path / "int8", k=7, precision="int8", split=histories)
    assert done.before == pytest.approx(measure_ndcg_by_recommender(model, histories))
    assert done.after == pytest.approx(measure_ndcg(done.path, histories))


def measure_ndcg_by_recommender(model, histories):
    recommender, gains = Recommender.from_pretrained(model), []
    for history, target in zip(histories, histories.targets, strict=True):
        top = recommender.recommend([ITEMS[number - 2] for number in history], k=7)
        places = [each.item for each in top]
        target = ITEMS[target - 2]
        gains.append(1 / np.log2(places.index(target) + 2) if target in places else 0)
    return np.mean(gains)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_weights_of_less_precision_make_a_smaller_file_with_close_scores(
    model, exported_before, session, tmp_path, precision
):
    done = export_onnx(model, tmp_path / "less", k=7, precision=precision)
    inputs = {"histories": to_ids([ITEMS[:4], ITEMS[9:12]])}
    exact, close = (each.run(None, inputs)[1] for each in (session, open_session(done.path)))
    share = {"float16": 3e-3, "int8": 0.1}[precision]
    assert close == pytest.approx(exact, abs=share * float(exact.max()))
    assert (close != exact).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_exported(tmp_path, kind):
    folder = save_model(tmp_path / "model", **KINDS[kind])
    done = export_onnx(folder, tmp_path / "onnx", k=7)
    histories = [ITEMS[:1], ITEMS[4:7], ITEMS[20:33]]
    check_answers(Recommender.from_pretrained(folder), open_session(done.path), histories)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["ilora", "lora", "ia3"])
def test_adapters_can_be_exported(tmp_path, root, run, tuner):
    run(root / f"{tuner}.yaml", tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    done = export_onnx(adapter, tmp_path / "onnx", k=7)
    recommender = Recommender.from_pretrained(adapter)
    history = recommender.catalog[5:9]
    ids = np.array([[recommender.vocabulary.ids[item] for item in history]])
    items, _ = open_session(done.path).run(None, {"histories": ids})
    expected = [each.item for each in recommender.recommend(history, k=7)]
    assert [recommender.vocabulary.names[number] for number in items[0]] == expected


def test_a_file_that_computes_something_else_is_not_kept(exported_before, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="onnxruntime and torch differ by .* for 1 histories of 1"):
        export_onnx(other, tmp_path / "onnx", k=7)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_offered_precisions_are_those_that_exist():
    assert tuple(PRECISIONS) == OFFERED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--precision int8 costs accuracy; give a prepared dataset"),
        (["-k", "0"], "k must be at least 1, got 0"),
        (["--onnx", "."], r". exists; name another folder"),
    ],
)
def test_an_export_that_cannot_be_is_refused(model, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["export", str(model), "--onnx", str(tmp_path / "onnx"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()
