"""RecBole's benchmark files: a row holds a whole history, its newest item apart."""

from collections.abc import Callable, Iterator

import polars as pl

PADDING = "0"


def merge_lists(
    read: Callable[[], Iterator[pl.DataFrame]],
) -> tuple[Callable[[], Iterator[pl.DataFrame]], list[str]]:
    """Make one row per item, of the column `list` and the newest item in `item`.

    The entries of a list stand between blanks or, where no list has a blank, between commas. Where
    all lists are equally long and some end in 0, RecBole has padded them, and 0 is no item.

    Returns:
        How to read the rows, and what a user should know.

    Raises:
        ValueError: 0 is padding in one place and an item in another.
    """
    texts = pl.concat([block.select("list", "item") for block in read()])
    notes = []
    separator = r"\S+"
    if texts["list"].str.contains(",").any() and not texts["list"].str.contains(r"\S\s+\S").any():
        separator = r"[^\s,]+"
        notes.append("item_id_list was read as separated by commas")
    lists = texts["list"].fill_null("").str.extract_all(separator)
    is_padded = lists.list.len().n_unique() == 1 and (lists.list.last() == PADDING).any()
    if is_padded:
        kept = lists.list.join(" ").str.replace(r"( ?\b0)+$", "").str.extract_all(r"\S+")
        if (texts["item"] == PADDING).any() or kept.list.contains(PADDING).any():
            raise ValueError(
                "the lists of item_id_list are equally long and some end in 0, as padded ones do, "
                "but 0 is an item elsewhere; remove the padding"
            )
        notes.append("item_id_list is padded with 0, which was left out")

    def read_items() -> Iterator[pl.DataFrame]:
        for block in read():
            items = pl.col("list").fill_null("").str.extract_all(separator)
            if is_padded:
                items = items.list.eval(pl.element().filter(pl.element() != PADDING))
            block = block.with_columns(item=items.list.concat(pl.concat_list("item")))
            yield block.drop("list").explode("item", empty_as_null=True)

    return read_items, notes
