import io

from bert4rec_hf.training.progress import LineProgress, show_progress


def test_a_log_file_gets_a_line_every_five_per_cent():
    stream = io.StringIO()
    with show_progress(1_000, "step", stream=stream) as progress:
        for _ in range(1_000):
            progress.set_postfix(loss="3.2")
            progress.update()
            progress.refresh()
    lines = stream.getvalue().splitlines()
    assert [line.split(" steps")[0] for line in lines] == [
        f"{done:,} of 1,000" for done in range(0, 1_001, 50)
    ]
    assert lines[10].startswith("500 of 1,000 steps (50%), 00:0")
    assert lines[10].endswith(", loss=3.2")
    assert "\r" not in stream.getvalue()


def test_resumed_work_begins_where_it_was():
    stream = io.StringIO()
    with show_progress(40, "step", initial=30, stream=stream) as progress:
        progress.update(10)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "30 of 40 steps (75%)",
        "40 of 40 steps (100%)",
    ]


def test_other_processes_are_silent():
    stream = io.StringIO()
    with show_progress(10, "step", is_shown=False, stream=stream) as progress:
        progress.update(10)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert not isinstance(show_progress(10, "step", stream=Terminal()), LineProgress)
