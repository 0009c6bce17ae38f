import json

import numpy as np
import polars as pl
import pytest

from bert4rec_hf.commands.main import main
from bert4rec_hf.data.synthetic import SyntheticConfig, generate_interactions
from bert4rec_hf.serving.recommender import Recommender

SINCE = 1_500_000_000
"""Later than all that is generated."""


@pytest.fixture(scope="module")
def orders(root, tmp_path_factory):
    """What the base model was trained on, and then two interactions of each user, one with x or y.

    Users whose name ends with an even number buy x then y, others y then x.
    """
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    past = generate_interactions(synthetic).interactions
    past = past.filter(pl.col("timestamp") < SINCE)
    users = past["user"].unique().sort().to_list()
    rows = [
        (user, item, SINCE + place * 10 + number)
        for number, user in enumerate(users)
        for place, item in enumerate(("x", "y") if int(user[-1]) % 2 else ("y", "x"))
    ]
    recent = pl.DataFrame(rows, schema=past.schema, orient="row")
    path = tmp_path_factory.mktemp("orders") / "orders.parquet"
    pl.concat([past, recent]).write_parquet(path)
    return path


def update(root, orders, output, *arguments):
    command = ["update", root / "base" / "model", "--interactions", orders, "--output", output]
    main([*map(str, command), "--since", str(SINCE), *arguments])


def test_new_items_join_and_are_learned(root, orders, tmp_path, capsys):
    output = tmp_path / "tuesday"
    update(root, orders, output, "--epochs", "15", "--learning-rate", "1e-2", "--held-out", "20")
    results = json.loads((output / "update.json").read_text())
    assert results["new_items"] == results["new_items_from_known"] == 2
    assert results["before"]["all"]["targets"] == results["after"]["new"]["targets"] == 20
    # Who has bought one of the two buys the other.
    assert results["after"]["new"]["ndcg@10"] > 0.9 > results["before"]["new"]["ndcg@10"]
    base = Recommender.from_pretrained(root / "base" / "model")
    updated = Recommender.from_pretrained(output)
    assert updated.catalog == [*base.catalog, "x", "y"]
    assert updated.recommend([*base.catalog[:3], "x"], k=1)[0].item == "y"
    printed = capsys.readouterr().out
    assert f"| new items | 20 | {results['before']['new']['hit_rate@10']:.4f} |" in printed
    card = (output / "README.md").read_text()
    assert "those of the model before its update" in card
    assert list(tmp_path.iterdir()) == [output]


def test_given_vectors_initialize_new_items(root, orders, tmp_path):
    base = Recommender.from_pretrained(root / "base" / "model")
    vectors = pl.DataFrame(
        {"item": [base.catalog[4], base.catalog[9], "x"], "vector": [[0.0, 1.0], [1.0, 0], [2, 0]]}
    )
    vectors.write_parquet(tmp_path / "vectors.parquet")
    output = tmp_path / "tuesday"
    arguments = ["--epochs", "1", "--learning-rate", "1e-30", "--vectors"]
    update(root, orders, output, *arguments, str(tmp_path / "vectors.parquet"))
    table = Recommender.from_pretrained(output).scorer.weight.numpy(force=True)
    np.testing.assert_allclose(table[62], table[2 + 9], rtol=1e-5)
    np.testing.assert_allclose(table[:62], base.scorer.weight.numpy(force=True), rtol=1e-5)
    assert json.loads((output / "update.json").read_text())["new_items_from_known"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "2030-01-01"], "no interaction is as new as --since 1893456000"),
        (["--since", "tuesday"], "--since must be unix seconds or an ISO date"),
        (["--replay", "-1"], "replay must be 0 or more, got -1"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--vectors", "nothing.parquet"], "there is no file of vectors nothing.parquet"),
    ],
)
def test_an_update_that_cannot_be_is_refused(root, orders, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        update(root, orders, tmp_path / "tuesday", *arguments)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_before_is_not_overwritten(root, orders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        update(root, orders, tmp_path)
    assert f"{tmp_path} exists; name another --output" in capsys.readouterr().err
