from bert4rec_hf.lab.cards.reliability_card import render_reliability


def make_results(*trials):
    names = ("area", "tried", "outcome", "times")
    return {
        "trials": [dict(zip(names, trial, strict=True)) for trial in trials],
        "commit": "0123abc",
        "device": {"name": "a small CPU"},
        "versions": {"torch": "2.13.0", "accelerate": "1.15.0"},
    }


def test_the_same_outcome_of_several_files_is_counted_once():
    text = render_reliability(
        {
            "one": make_results(
                ("signals", "SIGTERM", "saved", 3), ("starved", "no disk", "told", 1)
            ),
            "two": make_results(
                ("signals", "SIGTERM", "saved", 4), ("signals", "SIGTERM", "lost", 2)
            ),
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| s")]
    assert rows == [
        "| signals | SIGTERM | 7 | saved |",
        "| starved | no disk | 1 | told |",
        "| signals | SIGTERM | 2 | lost |",
    ]
    assert "- `two`: commit `0123abc`, a small CPU, torch 2.13.0, accelerate 1.15.0." in text
