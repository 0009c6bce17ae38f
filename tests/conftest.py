import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import run_experiment
from bert4rec_hf.lab.benchmark.task import Settings, Task
from bert4rec_hf.lab.benchmark.workloads import Shape, Workload

ROOT = Path(__file__).parents[1]
ADAPTERS = {
    "ilora": {"r": 4, "num_experts": 2, "lora_dropout": 0.0},
    "lora": {"r": 4, "target_modules": ["q_proj", "up_proj"]},
    "ia3": {},
}


@pytest.fixture(scope="session")
def tiny():
    """Make a task in which everything is small, for a contestant with settings of its own."""
    workload = Workload(
        name="tiny",
        num_items=97,
        min_length=3,
        mean_length=6.0,
        log_spread=1.0,
        max_length=11,
        zipf_exponent=0.7,
        epoch_histories=106,
        num_histories=53,
    )
    shape = Shape(name="tiny", hidden_size=12, num_layers=2, num_heads=3)

    def make(contestant, **settings):
        settings = Settings(**{"batch_size": 7, "num_negatives": 5} | settings)
        return Task(contestant=contestant, workload=workload, shape=shape, settings=settings)

    return make


def write(path, **sections):
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="session")
def run():
    """Run an experiment file in this process, as scripts/train.py does."""

    def start(path, output, *arguments, **options):
        experiment = load_experiment(path, arguments)
        torch.manual_seed(experiment.training.seed)
        return run_experiment(experiment, output, build_accelerator(experiment, output), **options)

    return start


@pytest.fixture(scope="session")
def root(tmp_path_factory, run):
    """A folder with two datasets of one catalog, a base model for the first, and configs."""
    root = tmp_path_factory.mktemp("story")
    for name, seed in (("past", 0), ("later", 1)):
        synthetic = SyntheticConfig(
            num_users=150, num_items=60, mean_length=8.0, max_length=20, seed=seed
        )
        vocabulary = str(root / "past") if name == "later" else ""
        config = PreparationConfig(synthetic=synthetic, vocabulary=vocabulary)
        prepare_dataset("synthetic", None, root / name, config)
    sections = {
        "data": {"dataset": str(root / "past"), "mask_ratio": 0.4},
        "model": {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9},
        "training": {
            "learning_rate": 0.01,
            "batch_size": 32,
            "max_steps": 8,
            "evaluation_steps": 4,
            "checkpoint_steps": 4,
        },
        "evaluation": {"ks": [10], "num_bootstrap_samples": 50},
        "card": {"dataset_name": "generated", "dataset_license": "none"},
    }
    run(write(root / "base.yaml", **sections), root / "base")
    sections |= {"data": {"dataset": str(root / "later")}, "model": {}}
    sections["base"] = {"model": str(root / "base" / "model")}
    write(root / "full.yaml", **sections)
    for tuner, settings in ADAPTERS.items():
        write(root / f"{tuner}.yaml", adapter={"tuner": tuner} | settings, **sections)
    return root


@pytest.fixture(scope="session")
def launch():
    """Run the training script as a user would, on one or two processes."""

    def start(*arguments, processes=1, precision="no", backend="no"):
        flags = [
            "--quiet",
            "--num_processes",
            processes,
            *(["--multi_gpu"] if processes > 1 else []),
        ]
        command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_machines", 1]
        command += ["--mixed_precision", precision, "--dynamo_backend", backend]
        command.append(ROOT / "scripts" / "train.py")
        environment = {
            "PATH": "/usr/bin:/bin",
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*map(str, command), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    return start
