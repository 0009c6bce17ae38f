import re
from dataclasses import dataclass, field

import pytest
from huggingface_hub.dataclasses import strict

from bert4rec_hf.config import TrainingConfig, build_section, override, read_yaml


@strict
@dataclass(kw_only=True)
class Oven:
    """A section like any other."""

    degrees: float | int
    minutes: int = 30
    trays: list[str] = field(default_factory=list)

    def validate_degrees(self) -> None:
        if self.degrees > 300:
            raise ValueError(f"degrees must be at most 300, got {self.degrees}")


def test_settings_become_fields_and_the_rest_keeps_its_defaults():
    oven = build_section(Oven, {"degrees": 180, "trays": ["top"]}, "oven")
    assert (oven.degrees, oven.minutes, oven.trays) == (180, 30, ["top"])


def test_text_is_read_as_a_number_where_the_field_is_one():
    assert build_section(Oven, {"degrees": "1e2"}, "oven").degrees == 100.0
    assert (
        build_section(TrainingConfig, {"learning_rate": "1e-3"}, "training").learning_rate == 1e-3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"degrees": 1, "minuts": 3},
            r"oven.minuts is not a setting of Oven; did you mean minutes\?",
        ),
        (
            {"degrees": 1, "zzz": 3},
            "oven.zzz is not a setting of Oven; it has degrees, minutes, trays",
        ),
        ({}, "oven.degrees is missing and has no default; add it"),
        ({"degrees": "hot"}, "oven: .*degrees.*hot"),
        ({"degrees": 1, "minutes": 2.5}, "oven: .*minutes.*2.5"),
        ({"degrees": 1, "minutes": "5"}, "oven: .*minutes.*'5'"),
        ({"degrees": 301}, "oven: degrees must be at most 300, got 301"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build_section(Oven, settings, "oven")


def test_the_command_line_is_read_like_yaml():
    sections = {"oven": {"minutes": 5}}
    override(sections, ["--oven.minutes", "7", "--oven.trays=[top, low]", "--fan.on", "true"])
    assert sections == {"oven": {"minutes": 7, "trays": ["top", "low"]}, "fan": {"on": True}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "7"], "'--minutes' is not a setting; write --section.setting value"),
        (["oven.minutes", "7"], "'oven.minutes' is not a setting"),
        (["--oven.minutes"], "--oven.minutes has no value"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override({}, arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oven: [", "oven.yaml is not valid YAML"),
        ("- 1", "oven.yaml must hold sections of settings"),
        ("oven: 5", "oven.yaml must hold sections of settings"),
        ("", "oven.yaml must hold sections of settings"),
        ("!!python/object:os.system {}", "oven.yaml is not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text, message):
    path = tmp_path / "oven.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
        ({"warmup_ratio": 1}, r"warmup_ratio must be in \[0, 1\), got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"schedule": "step"},
            "'schedule' expected one of .*'constant'.*, got step",
        ),
    ],
)
def test_impossible_training_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_section(TrainingConfig, {"learning_rate": 1e-3} | settings, "training")
