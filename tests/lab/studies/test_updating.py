import json
import sys

import polars as pl
import pytest
import yaml

from bert4rec_hf.data.synthetic import SyntheticConfig, generate_interactions
from bert4rec_hf.lab.studies.updating import main


@pytest.mark.slow
def test_an_update_is_set_beside_a_retraining(root, tmp_path, monkeypatch, capsys):
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    frame = generate_interactions(synthetic).interactions
    since, until = (int(frame["timestamp"].quantile(share)) for share in (0.8, 0.9))
    is_new = pl.col("item") == frame["item"][0]
    frame = frame.filter(~is_new | (pl.col("timestamp") >= since))
    frame.write_parquet(tmp_path / "orders.parquet")
    experiment = yaml.safe_load((root / "base.yaml").read_text())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    arguments = [tmp_path / "orders.parquet", "--experiment", tmp_path / "tiny.yaml"]
    arguments += ["--since", since, "--until", until, "--workplace", tmp_path / "work"]
    arguments += ["--epochs", 1, "--output", tmp_path / "results.json"]
    monkeypatch.setattr(sys, "argv", ["updating", *map(str, arguments)])
    main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["update"]["new_items"] == 1
    later = frame.filter(pl.col("timestamp") >= until)
    measured = results["measured"]
    assert 0 < measured["updated"]["all"]["targets"] <= later.height
    assert measured["updated"]["all"]["targets"] == measured["retrained"]["all"]["targets"]
    steps = {name: trained["steps"] for name, trained in results["trained"].items()}
    assert steps["before"] < steps["until"] < experiment["training"]["max_steps"]
    assert results["cpu_share"] > 0
