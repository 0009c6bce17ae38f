"""A search for settings: declared ranges, trials that are stopped early, workers that share it.

A trial is a run of the experiment that is validated and not tested.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock
from huggingface_hub.dataclasses import strict

from bert4rec_hf.config import build_section, join_names, override, read_yaml, to_arguments
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import train_experiment
from bert4rec_hf.experiment.spec import Experiment
from bert4rec_hf.training.interruption import Interrupted
from bert4rec_hf.training.run_folder import describe_changes, flatten, write_whole

if TYPE_CHECKING:  # an extra, and not needed to train
    import optuna

HEARTBEAT_SECONDS = 30
FEWEST_TRIALS = 4
"""Below this nothing can be said of what matters."""


@strict
@dataclass(kw_only=True)
class StudyConfig:
    """What is tried, and how often."""

    experiment: str
    """File of `configs/` whose settings hold where this file says nothing."""

    num_trials: int = 20
    """Of all workers together; a stopped one counts, a failed one does not."""

    num_startup_trials: int = 5
    """Drawn at random, and none stopped, before earlier trials are learned from."""

    num_warmup_validations: int = 1
    """Validations of each trial before it can be stopped."""

    seed: int = 0
    """Of the search; the trials have that of the experiment."""

    def validate_counts(self) -> None:
        for name in ("num_trials", "num_startup_trials", "num_warmup_validations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@strict
@dataclass(kw_only=True)
class Range:
    """The values that a setting may take: from low to high, or some choices."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    """Whether values ten times as large are as near as those a tenth."""

    choices: list[int | float | str | bool] | None = None

    def validate_ends(self) -> None:
        has_ends = self.low is not None and self.high is not None
        if has_ends == (self.choices is not None):
            raise ValueError("a range has either low and high, or choices")
        if has_ends and not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and not (has_ends and self.low > 0):
            raise ValueError(f"log needs a low above 0, got {self.low}")

    def suggest(self, name: str, trial: "optuna.Trial") -> Any:
        """Take the value that a trial is to try; whole numbers between whole numbers."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        suggest = trial.suggest_int if is_whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Search:
    """One file that says what to search for."""

    name: str
    study: StudyConfig
    ranges: dict[str, Range]
    """By `section.setting`."""

    fixed: dict[str, Any]
    """Settings that differ from the experiment's in all trials, by `section.setting`."""

    def describe(self) -> dict[str, Any]:
        """Ranges and fixed settings as plain values."""
        ranges = {
            name: {
                # Not `in (None, False)`, which a lowest value of 0 is.
                key: value
                for key, value in vars(each).items()
                if value is not None and value is not False
            }
            for name, each in self.ranges.items()
        }
        return {"ranges": ranges, "fixed": self.fixed}

    def build(self, values: dict[str, Any]) -> Experiment:
        """Make the experiment with these values of the search.

        Raises:
            ValueError: The experiment has no such setting, or it cannot have such a value.
        """
        arguments = to_arguments(self.fixed | values)
        return load_experiment(Path(self.study.experiment), arguments)


def load_search(path: Path, arguments: Sequence[str] = ()) -> Search:
    """Read a file of a search: the sections `study` and `search`, and settings of the experiment.

    Args:
        path: Such as `configs/ml100k/tune.yaml`.
        arguments: `--section.setting value` pairs over the file.

    Raises:
        ValueError: Something in it is unknown, missing, or out of range.
    """
    sections = read_yaml(path)
    override(sections, arguments)
    study = build_section(StudyConfig, sections.pop("study", {}), "study")
    declared = sections.pop("search", {})
    fixed = join_names(sections)
    ranges = {
        name: build_section(Range, values if isinstance(values, dict) else {}, f"search.{name}")
        for name, values in declared.items()
    }
    if not ranges:
        raise ValueError(f"{path}: search is empty; name a setting and its range under it")
    if both := fixed.keys() & ranges.keys():
        raise ValueError(f"{path}: {min(both)} is both searched and set; leave one out")
    search = Search(path.stem, study, ranges, fixed)
    # Each end of each range, so that a mistake shows before any work is done.
    for name, values in ranges.items():
        for value in values.choices or (values.low, values.high):
            search.build({name: value})
    return search


def run_search(search: Search, output: Path) -> dict[str, Any]:
    """Try until the study has its trials; several processes may do so at the same time.

    Args:
        search: What to search for.
        output: The folder of the study, new or begun before: `study.db` and a folder of each trial
            come into it; `study.json` and `best.yaml` are written after each trial.

    Returns:
        What stands in `study.json`.

    Raises:
        ValueError: The folder has another search.
    """
    import optuna

    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".lock"):  # two that begin at once would both make the tables
        study = open_study(search, output)

    def try_one(trial: optuna.Trial) -> float:
        values = {name: each.suggest(name, trial) for name, each in search.ranges.items()}
        folder = output / f"trial-{trial.number:04d}"
        try:
            return run_trial(trial, search.build(values), folder)
        except Interrupted:  # the next worker begins with what this one was at
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def keep_best(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.value is None or study.best_trial.number != trial.number:
            shutil.rmtree(output / f"trial-{trial.number:04d}", ignore_errors=True)
        write_study(search, study, output)

    for trial in study.get_trials(states=[optuna.trial.TrialState.FAIL]):  # of workers that died
        shutil.rmtree(output / f"trial-{trial.number:04d}", ignore_errors=True)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    enough = optuna.study.MaxTrialsCallback(search.study.num_trials, states)
    if len(study.get_trials(states=states)) < search.study.num_trials:
        study.optimize(try_one, callbacks=[keep_best, enough], catch=(torch.OutOfMemoryError,))
    return write_study(search, study, output)


def open_study(search: Search, output: Path) -> "optuna.Study":
    """Begin the study of a folder, or continue it; trials of dead workers are repeated."""
    import optuna

    config = search.study
    settings = flatten({"study": dataclasses.asdict(config), "search": search.describe()})
    del settings["study.num_trials"]  # more may be asked for later
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{output / 'study.db'}",
        engine_kwargs={"connect_args": {"timeout": 60}},
        heartbeat_interval=HEARTBEAT_SECONDS,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(
            config.num_startup_trials, n_warmup_steps=config.num_warmup_validations
        ),
        direction="maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("settings", settings)
    if changes := describe_changes(before, settings):
        raise ValueError(f"{output} holds a different search: {changes}; choose another --output")
    study.set_user_attr("settings", settings)
    # Workers of one seed would all draw the same, as would one that goes on.
    num_workers = study.user_attrs.get("workers", 0)
    study.set_user_attr("workers", num_workers + 1)
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=config.num_startup_trials,
        seed=config.seed + num_workers,
        constant_liar=True,
    )
    return study


def run_trial(trial: "optuna.Trial", experiment: Experiment, output: Path) -> float:
    """Train with the values of a trial, as long as it looks promising.

    Returns:
        The best value of the experiment's metric on validation.
    """
    import optuna

    experiment = dataclasses.replace(
        experiment, training=dataclasses.replace(experiment.training, trackers=[])
    )
    metric, values = experiment.training.metric, []

    def on_validation(step: int, metrics: dict[str, float]) -> None:
        values.append(metrics[metric])
        # Counted in validations: trials of different batch sizes have as many.
        trial.report(max(values), len(values))
        trial.set_user_attr("step", step)
        if trial.should_prune():
            raise optuna.TrialPruned

    accelerator = build_accelerator(experiment, output)
    set_seed(experiment.training.seed)
    trained = train_experiment(experiment, output, accelerator, on_validation=on_validation)
    trial.set_user_attr("dataset_fingerprint", trained["dataset_fingerprint"])
    trial.set_user_attr("best_step", trained["training"]["best_step"])
    trial.set_user_attr("experiment", trained["experiment"])
    return max(values)


def write_study(search: Search, study: "optuna.Study", output: Path) -> dict[str, Any]:
    """Write what is known so far: all trials, and the best settings as an experiment."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    results = {
        "kind": "study",
        "name": search.name,
        "study": dataclasses.asdict(search.study),
        "search": search.describe(),
        "trials": [describe_trial(trial) for trial in trials],
        "importances": find_importances(study, done),
        **provenance(Accelerator()),
    }
    if done:
        best = max(done, key=lambda trial: trial.value)
        results["best"] = describe_trial(best)
        results["dataset_fingerprint"] = best.user_attrs["dataset_fingerprint"]
        experiment = yaml.safe_dump(best.user_attrs["experiment"], sort_keys=False)
        heading = f"# The best of {len(done)} trials that ended; validation {best.value:.4f}.\n"
        write_whole(output / "best.yaml", heading + experiment)
    write_whole(output / "study.json", json.dumps(results, indent=2) + "\n")
    return results


def find_importances(
    study: "optuna.Study", done: "list[optuna.trial.FrozenTrial]"
) -> dict[str, float]:
    """Share of each setting in what makes a trial good (PED-ANOVA); nothing of few trials."""
    import optuna

    if len(done) < FEWEST_TRIALS:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def describe_trial(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """Everything about a trial, ready for JSON."""
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        "values": trial.params,
        "step": trial.user_attrs.get("step"),
        "best_step": trial.user_attrs.get("best_step"),
        "seconds": trial.duration.total_seconds() if trial.duration else None,
    }
