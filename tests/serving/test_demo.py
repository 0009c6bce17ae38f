import os
import shutil

import pytest
import torch
from gradio_client import Client

from bert4rec_hf.commands import demo as command
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.demo import build_demo, find_items, write_space
from bert4rec_hf.serving.explanation import leave_one_out, read_gate
from bert4rec_hf.serving.recommender import Recommender

ITEMS = ["alien", "fargo", "heat", "ran", "shop|<b>", "zardoz"]
TITLES = {"heat": "Heat (1995)", "zardoz": "Zardoz (1974)"}


@pytest.fixture(scope="module")
def recommender():
    torch.manual_seed(3)
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=6
    )
    model = BERT4RecForMaskedItemModeling(config)
    return Recommender(model, build_vocabulary(ITEMS), TITLES)


@pytest.fixture(scope="module")
def page(recommender):
    page = build_demo(recommender, name="shop")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    yield address
    page.close()


def test_the_page_recommends_what_the_recommender_does(page, recommender):
    best, reasons, gate, others = Client(page, verbose=False).predict(
        ["heat", "zardoz"], 3, api_name="/recommend"
    )
    expected = recommender.recommend(["heat", "zardoz"], 3)
    assert [row[2] for row in best["data"]] == [each.item for each in expected]
    assert [row[1] for row in best["data"]] == [each.title or each.item for each in expected]
    assert len(reasons["data"]) == 2
    assert others["data"] == []


def test_an_item_of_the_history_is_worth_what_the_score_falls_without_it(recommender):
    history = ["heat", "zardoz", "fargo"]
    (best,) = recommender.recommend(history, 1)

    def score(items):
        rows = recommender.recommend(items, len(recommender.catalog), exclude_seen=False)
        return next(each.score for each in rows if each.item == best.item)

    lost = leave_one_out(recommender, history, best.item)
    without = [score(["zardoz", "fargo"]), score(["heat", "fargo"]), score(["heat", "zardoz"])]
    assert lost == pytest.approx([score(history) - each for each in without], abs=1e-5)
    with pytest.raises(ValueError, match="needs a history of at least two, got 1"):
        leave_one_out(recommender, ["heat"], best.item)


def test_a_model_without_a_gate_has_no_experts(recommender):
    assert read_gate(recommender, ["heat"]) == []


def test_items_are_found_by_a_part_of_their_title_or_name(recommender):
    title, item = next((title, item) for item, title in recommender.titles.items() if title != item)
    assert (title, item) in find_items(recommender, title[1:].upper())
    assert (title, item) in find_items(recommender, item)
    assert find_items(recommender, "no such thing") == []


def test_a_space_shows_the_model_of_a_hub(tmp_path):
    write_space(tmp_path / "space", "ann/shop")
    app = (tmp_path / "space" / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert 'load_demo("ann/shop").launch()' in app
    card = (tmp_path / "space" / "README.md").read_text()
    assert card.startswith("---\ntitle: shop\nsdk: gradio\napp_file: app.py\nmodels:\n- ann/shop\n")
    with pytest.raises(FileExistsError):
        write_space(tmp_path / "space", "ann/shop")


def test_a_space_of_a_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path), "--space", str(tmp_path / "space")])
    assert "a Space needs a model on a hub, such as user/shop" in capsys.readouterr().err


@pytest.mark.slow
def test_a_browser_picks_items_and_sees_recommendations(page, recommender):
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or pytest.skip("needs chromium")
    expected = recommender.recommend(["heat", "zardoz"], 1)[0].item
    with sync_api.sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = window.new_page()
        tab.goto(page)
        for item in ("heat", "zardoz"):
            tab.locator("#search input, #search textarea").fill(item)
            tab.locator("#matches label", has_text=recommender.titles.get(item, item)).click()
        tab.locator("#reasons").get_by_text("Heat (1995)").first.wait_for()
        assert tab.get_by_text(expected, exact=True).first.is_visible()
        if path := os.environ.get("SCREENSHOT"):  # to be looked at
            tab.screenshot(path=path, full_page=True)
        window.close()
