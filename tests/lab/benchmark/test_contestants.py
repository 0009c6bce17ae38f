import pytest

from bert4rec_hf.lab.benchmark.contestants import CONTESTANTS, FLOORS, PEERS, parse_contestants
from bert4rec_hf.lab.benchmark.task import ADAPTERS, Task, refuse_flags
from bert4rec_hf.lab.benchmark.workloads import SHAPES, WORKLOADS
from bert4rec_hf.tuners import TUNERS


def parse(*texts, batch_size=32):
    return parse_contestants(
        texts, workload=WORKLOADS["movielens"], shape=SHAPES["ml64"], batch_size=batch_size
    )


def test_settings_of_a_contestant_go_over_those_of_all():
    tasks = parse("gbce", "floor:batch_size=5,dropout=0.25,precision=bf16")
    assert tasks["gbce"].settings.batch_size == 32
    floor = tasks["floor:batch_size=5,dropout=0.25,precision=bf16"]
    assert floor.contestant == "floor"
    settings = floor.settings
    assert (settings.batch_size, settings.dropout, settings.precision) == (5, 0.25, "bf16")


def test_a_task_crosses_to_its_process_and_back():
    (task,) = parse("sampled_softmax:num_negatives=3").values()
    assert Task.from_dict(task.to_dict()) == task


def test_floors_and_peers_are_contestants():
    assert {*FLOORS, *FLOORS.values(), *PEERS} < CONTESTANTS.keys()


def test_every_tuner_can_take_part():
    assert ("none", *TUNERS) == ADAPTERS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bert5rec", "contestant must be one of full_softmax, .*, got 'bert5rec'"),
        ("gbce:batchsize=3", "batchsize is not a setting of a contestant; it has batch_size, "),
        ("gbce:batch_size=many", "batch_size must be of type int, got 'many'"),
        ("gbce:batch_size=0", "batch_size must be at least 1, got 0"),
        ("gbce:batch_size=7000", "at most the 6040 histories of the workload, got 7000"),
        ("gbce:precision=fp64", "precision must be one of no, bf16, fp16, got 'fp64'"),
        ("gbce:adapter=dora", "adapter must be one of none, lora, ia3, ilora, got 'dora'"),
        ("gbce:adapter_targets=q", "adapter_targets must be one of default, all-linear, got 'q'"),
        ("gbce:r=0", "r must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_peer_refuses_what_its_library_does_not_do():
    (task,) = parse("recbole:compile=inductor").values()
    refuse_flags(task, "precision", "adapter")
    message = "recbole has no compile: it must be no, got 'inductor'; leave it out"
    with pytest.raises(ValueError, match=message):
        refuse_flags(task, "precision", "compile", "adapter")


@pytest.mark.parametrize("name", ["floor", "sampled_floor", "bert_for_masked_lm"])
def test_an_adapter_is_refused_by_whom_it_cannot_be_put_on(tiny, name):
    with pytest.raises(ValueError, match=f"{name} has no adapter: it must be none, got 'lora'"):
        CONTESTANTS[name](tiny(name, adapter="lora"))
