from bert4rec_hf.commands.update import LEARNING
from bert4rec_hf.experiment.update import UpdateConfig


def test_the_defaults_of_the_command_are_those_of_its_settings():
    config = UpdateConfig(since=0)
    assert {name: getattr(config, name) for name in LEARNING} == LEARNING
