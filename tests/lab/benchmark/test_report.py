import pytest

from bert4rec_hf.lab.benchmark.report import describe_record, find_floor, render_table, summarize
from bert4rec_hf.lab.benchmark.tournament import Plan, Record


@pytest.fixture
def records(tiny):
    """Three contestants, two rounds of four batches of seven histories."""

    def record(label, contestant, seconds, peak, trainable=None):
        turns = [{"seconds": each, "histories": 28, "items": 140} for each in seconds]
        return Record(
            label=label,
            task=tiny(contestant),
            parameters=trainable,
            trainable=trainable,
            warmup_seconds=1.5,
            peak_memory_bytes=peak,
            turns=turns,
        )

    return [
        record("ours", "full_softmax", [2.0, 4.0], 3_000_000, 4_000),
        record("below", "floor", [1.0, 1.0], 1_000_000),
        record("theirs", "recbole", [20.0, 28.0], 12_000_000),
    ]


def test_contestants_are_compared_round_by_round(records):
    ours, floor, theirs = summarize(records, Plan(batches=4))
    # 28 histories in 2 s and in 4 s, so 14/s and 7/s; quartiles of two lie between them.
    assert ours["histories_per_second"] == pytest.approx([8.75, 10.5, 12.25])
    assert ours["items_per_second"] == pytest.approx([43.75, 52.5, 61.25])
    assert ours["step_milliseconds"] == pytest.approx([625.0, 750.0, 875.0])
    # The tiny dataset has 106 users: 7.57 s and 15.14 s.
    assert ours["epoch_seconds"] == pytest.approx([9.464286, 11.357143, 13.25])
    # 10 times in the first round and 7 times in the second.
    assert ours["times_as_fast"] == {"theirs": pytest.approx([7.75, 8.5, 9.25])}
    assert ours["share_of_memory"] == {"theirs": 0.25}
    assert ours["step_over_floor"] == pytest.approx([2.5, 3.0, 3.5])
    assert floor["step_over_floor"] is theirs["step_over_floor"] is None


def test_a_base_can_be_named(records):
    ours, *_ = summarize(records, Plan(bases=("below",)))
    assert ours["times_as_fast"] == {"below": pytest.approx([0.3125, 0.375, 0.4375])}


def test_a_floor_at_another_batch_size_is_not_that_of_the_contestant(records, tiny):
    ours, floor, _ = records
    assert find_floor(ours, records) is floor
    floor.task = tiny("floor", batch_size=5)
    assert find_floor(ours, records) is None


def test_the_floor_of_the_whole_model_is_not_that_of_an_adapter(records, tiny):
    ours, *_ = records
    ours.task = tiny("full_softmax", adapter="lora")
    assert find_floor(ours, records) is None


def test_an_adapter_tells_what_share_is_trained_and_of_what_memory(records, tiny):
    ours, floor, _ = records
    adapter = Record(
        label="adapter",
        task=tiny("full_softmax", adapter="ilora"),
        parameters=4_010,
        trainable=10,
        warmup_seconds=0.5,
        peak_memory_bytes=1_200_000,
        turns=ours.turns,
    )
    summary = summarize([ours, floor, adapter], Plan(batches=4, bases=("ours",)))
    assert [row["trainable_ratio"] for row in summary] == [1.0, None, 10 / 4_010]
    assert summary[2]["share_of_memory"] == {"ours": 0.4}
    heading, *lines = render_table(summary).splitlines()
    headings = [each.strip() for each in heading.split("  ") if each]
    assert headings[-4:] == ["warm-up s", "trainable", "x ours", "of its MB"]
    assert [line.split()[-4] for line in lines] == ["100.00%", "–", "0.25%"]
    assert [line.split()[-1] for line in lines] == ["100%", "33%", "40%"]


def test_memory_is_compared_at_equal_batches_only(records, tiny):
    records[2].task = tiny("recbole", batch_size=5)
    assert summarize(records, Plan())[0]["share_of_memory"] == {"theirs": None}


def test_the_table_has_a_line_per_contestant_and_says_who_failed(records, tiny):
    failed = Record(label="gone", task=tiny("rectools"), failure="ended by signal 9: out of memory")
    table = render_table(summarize([*records, failed], Plan(batches=4)))
    heading, ours, floor, theirs, last = table.splitlines()
    assert heading.split("  ")[0] == "contestant"
    assert heading.endswith("x theirs  of its MB")
    times = "8.50 [7.75–9.25]"
    assert " ".join(ours.split()) == (
        f"ours 3.00 [2.50–3.50] 10.5 52 750.0 [625.0–875.0] 3 1.5 {times} 25%"
    )
    assert theirs.split()[-3:] == ["1.00", "[1.00–1.00]", "100%"]
    assert last == "gone failed: ended by signal 9: out of memory"


def test_a_table_of_failures_only_is_a_heading_and_the_reasons(tiny):
    failed = Record(label="gone", task=tiny("rectools"), failure="no module")
    assert render_table(summarize([failed], Plan())).splitlines()[1:] == ["gone failed: no module"]


def test_a_record_tells_its_settings_and_every_turn(records):
    told = describe_record(records[0])
    assert told["contestant"] == "full_softmax"
    assert told["settings"]["batch_size"] == 7
    assert [turn["seconds"] for turn in told["turns"]] == [2.0, 4.0]
