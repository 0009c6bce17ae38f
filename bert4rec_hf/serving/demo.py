"""A page to try a model on: items are picked by title, recommendations and their reasons shown."""

from pathlib import Path
from typing import Any

import gradio as gr

from bert4rec_hf.hub.model_folder import find_base

from .explanation import leave_one_out, read_gate
from .recommender import Recommender

MOST_MATCHES = 30
"""Items that a search shows."""

HEADING = """# {name}
Find items, put them into the history in the order they were met, and see what comes next."""

SPACE_APP = '''"""A page to try {repository} on."""

from bert4rec_hf.serving.demo import load_demo

load_demo("{repository}").launch()
'''
SPACE_CARD = """---
title: {title}
sdk: gradio
app_file: app.py
models:
- {repository}
tags:
- recommendation
- bert4rec
---

A page to try the model `{repository}` on: pick items by title, see what comes next and why.
"""


def load_demo(name: str | Path) -> gr.Blocks:
    """Build the page of a model or adapter folder, or of one of a hub."""
    base = find_base(name) if Path(name).is_dir() else None
    return build_demo(
        Recommender.from_pretrained(name),
        name=str(name),
        base=Recommender.from_pretrained(base) if base else None,
    )


def build_demo(
    recommender: Recommender, *, name: str, base: Recommender | None = None
) -> gr.Blocks:
    """Build the page.

    Args:
        recommender: What is tried.
        name: Heads the page.
        base: The model without the adapter, to compare with.
    """
    with gr.Blocks(title=f"{name} · next items") as page:
        gr.Markdown(HEADING.format(name=name))
        with gr.Row():
            with gr.Column():
                search = gr.Textbox(label="Find items by title or name", elem_id="search")
                choices = find_items(recommender, "")
                found = gr.Radio(choices, label="Matches: click to add", elem_id="matches")
                history = gr.Dropdown(
                    [],
                    label="History, oldest first; remove an item by its ×",
                    multiselect=True,
                    allow_custom_value=True,
                    elem_id="history",
                )
                number = gr.Slider(1, 50, value=10, step=1, label="Recommendations")
            with gr.Column():
                best = gr.Dataframe(
                    headers=["rank", "title", "item", "score"], label="Recommendations"
                )
                reasons = gr.Dataframe(
                    headers=["item of the history", "score lost without it"],
                    label="Why the first one",
                    elem_id="reasons",
                )
                gate = gr.Label(label="Experts of the adapter", visible=base is not None)
                others = gr.Dataframe(
                    headers=["rank", "title", "item", "score"],
                    label="Without the adapter",
                    visible=base is not None,
                )

        def answer(items: list[str], k: int) -> tuple[Any, Any, Any, Any]:
            if not items:
                return [], [], {}, []
            rows = recommend(recommender, items, k)
            lost = explain(recommender, items, rows)
            weights = {f"expert {n}": w for n, w in enumerate(read_gate(recommender, items), 1)}
            return rows, lost, weights, recommend(base, items, k) if base else []

        search.change(
            lambda text: gr.Radio(find_items(recommender, text), value=None), search, found
        )
        found.input(
            lambda item, items: (add_item(recommender, items, item), None),
            [found, history],
            [history, found],
        )
        shown = [best, reasons, gate, others]
        history.change(answer, [history, number], shown, api_name="recommend")
        number.release(answer, [history, number], shown, api_name=False)
    return page


def find_items(recommender: Recommender, text: str) -> list[tuple[str, str]]:
    """Look items up by a part of their title or name: what is shown, and the raw item."""
    wanted, found = text.casefold().strip(), []
    for item in recommender.catalog:
        shown = recommender.titles.get(item, item)
        if wanted in shown.casefold() or wanted in item.casefold():
            found.append((shown, item))
            if len(found) == MOST_MATCHES:
                break
    return found


def add_item(recommender: Recommender, items: list[str], item: str) -> gr.Dropdown:
    """The history with one more item, under the titles of all."""
    items = items if item in items else [*items, item]
    return gr.Dropdown([(recommender.titles.get(each, each), each) for each in items], value=items)


def recommend(recommender: Recommender, items: list[str], k: int) -> list[list[Any]]:
    """Rows of rank, title, item and score."""
    rows = recommender.recommend(items, int(k), unknown="skip", cold="empty")
    return [
        [rank, each.title or each.item, each.item, round(each.score, 3)]
        for rank, each in enumerate(rows, start=1)
    ]


def explain(recommender: Recommender, items: list[str], rows: list[list[Any]]) -> list[list[Any]]:
    """Rows of an item of the history and what the first recommendation owes to it."""
    known = [item for item in items if item in recommender.vocabulary.ids]
    if not rows or len(known) < 2:
        return []
    lost = leave_one_out(recommender, known, rows[0][2])
    return [
        [recommender.titles.get(item, item), round(share, 3)]
        for item, share in zip(known, lost, strict=True)
    ]


def write_space(folder: Path, repository: str) -> None:
    """Write the files of a Space that shows the page of a model on a hub.

    Args:
        folder: Must be new.
        repository: `user/name` of the model.

    Raises:
        FileExistsError: The folder exists.
    """
    folder.mkdir(parents=True)
    title = repository.rpartition("/")[2]
    (folder / "app.py").write_text(SPACE_APP.format(repository=repository), encoding="utf-8")
    (folder / "requirements.txt").write_text("bert4rec_hf[demo]\n", encoding="utf-8")
    card = SPACE_CARD.format(title=title, repository=repository)
    (folder / "README.md").write_text(card, encoding="utf-8")
