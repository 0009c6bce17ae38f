import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.reading import RawInteractions, collect_interactions


@pytest.fixture
def collect():
    """Rows of texts → what `collect_interactions` makes of them."""

    def collect(
        rows,
        columns=("user", "item", "timestamp"),
        *,
        name="the source",
        unit="seconds",
        **settings,
    ):
        frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
        raw = RawInteractions.from_frame(frame, unit=unit, files=[name])
        return collect_interactions(raw, PreparationConfig(**settings), name)

    return collect
