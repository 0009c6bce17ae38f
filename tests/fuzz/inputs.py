"""Damaged files: how they come about, and who has to read them.

A target takes the path of a file or folder. Whatever stands in it, the target returns, or raises
ValueError or FileNotFoundError with the name of the file.
"""

import functools
import gzip
import io
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset, refusing_unreadable
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.reading import collect_interactions
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.data.vocabulary import build_vocabulary, read_ids
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.hub.model_folder import save_model_folder
from bert4rec_hf.hub.weights_check import check_model
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

ROOT = Path(__file__).parents[2]
PIECES = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b" ", b'"', b"'", b"\\", b","),
    *(
        b"[" * 40,
        b"{" * 40,
        b"]",
        b"}",
        b":",
        b"- ",
        b"? ",
        b"&a ",
        b"*a",
        b"!!bool ",
        b"<<: ",
        b"#",
    ),
    *(
        b"null",
        b"true",
        b".nan",
        b".inf",
        b"-1",
        b"0",
        b"1e999",
        b"9" * 30,
        b"9" * 5000,
        b"1:59:59",
    ),
    *("é映".encode(), "\u2028".encode(), b"x" * 5000, b"::", b"||", b"%", b"@", b"`", b"|\n"),
]
"""What text formats stumble over."""


def mutate(content: bytes, seed: int) -> bytes:
    """Damage a file in one to four ways, the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(draw.choice([1, 1, 2, 4])):
        content = draw.choice(WAYS)(content, draw)
    return content


def flip(content: bytes, draw: random.Random) -> bytes:
    """Change a bit."""
    if not content:
        return content
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def insert(content: bytes, draw: random.Random) -> bytes:
    """Put a piece somewhere."""
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.choice(PIECES) + content[place:]


def cut(content: bytes, draw: random.Random) -> bytes:
    """Leave out a run, or everything from some place on."""
    start = draw.randrange(len(content) + 1)
    stop = draw.choice([len(content), start + draw.randrange(1, 60)])
    return content[:start] + content[stop:]


def repeat(content: bytes, draw: random.Random) -> bytes:
    """Write a run twice or many times."""
    start = draw.randrange(len(content) + 1)
    run = content[start : start + draw.randrange(1, 80)]
    return content[:start] + run * draw.choice([2, 3, 50]) + content[start:]


def replace(content: bytes, draw: random.Random) -> bytes:
    """Put a piece in the place of a word, such as a value."""
    words = content.split(b" ")
    words[draw.randrange(len(words))] = draw.choice(PIECES)
    return b" ".join(words)


def swap(content: bytes, draw: random.Random) -> bytes:
    """Let two lines change places."""
    lines = content.split(b"\n")
    first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


WAYS = [flip, insert, cut, repeat, replace, swap]


@dataclass(frozen=True)
class Target:
    """Something that reads files from elsewhere."""

    make: Callable[[Path], None]
    """Writes what is whole into a folder."""

    file: str
    """The file of the folder that is damaged."""

    read: Callable[[Path], object]
    """Reads the folder."""


def make_experiment(folder: Path) -> None:
    shutil.copy(ROOT / "configs" / "synthetic" / "bert4rec.yaml", folder / "experiment.yaml")


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=6, hidden_size=4, intermediate_size=4, num_hidden_layers=1, max_history_length=3
    )
    build_vocabulary(["alien", "brazil", "dune", "heat"]).save_pretrained(folder)
    made = folder.with_name(f"{folder.name}-made")
    save_model_folder(BERT4RecForMaskedItemModeling(config), folder, made)
    shutil.copytree(made, folder, dirs_exist_ok=True)


def make_dataset(folder: Path) -> None:
    synthetic = SyntheticConfig(num_users=12, num_items=20, mean_length=5.0, max_length=9)
    made = folder.with_name(f"{folder.name}-made")
    prepare_dataset("synthetic", None, made, PreparationConfig(synthetic=synthetic))
    shutil.copytree(made, folder, dirs_exist_ok=True)


USERS, ITEMS, START = ("u1", "u2", "u3"), ("B000000001", "B000000002", "a b"), 1_433_000_000
ROWS = [
    (user, item, 4.0, START + 86_400 * (3 * row + place))
    for row, user in enumerate(USERS)
    for place, item in enumerate(ITEMS)
]


def lines(form: str, header: str = "") -> bytes:
    """A row for each user and item, in a format of `{u}`, `{i}`, `{r}` and `{t}`."""
    rows = [form.format(u=u, i=i, r=r, t=t, ms=t * 1000) for u, i, r, t in ROWS]
    return "\n".join([*([header] if header else []), *rows, ""]).encode()


def json_rows(**names: str) -> bytes:
    """The same as JSON lines."""
    values = [dict(zip("uirt", row, strict=True)) for row in ROWS]
    rows = [{theirs: row[ours] for ours, theirs in names.items()} for row in values]
    return "\n".join([*map(json.dumps, rows), ""]).encode()


def parquet_rows() -> bytes:
    file = io.BytesIO()
    pl.DataFrame(ROWS, ["user", "item", "rating", "timestamp"], orient="row").write_parquet(file)
    return file.getvalue()


RAW: dict[tuple[str, str], Callable[[], bytes]] = {
    ("ml100k", "u.data"): lambda: lines("{u}\t{i}\t{r}\t{t}"),
    ("ml1m", "ratings.dat"): lambda: lines("{u}::{i}::{r}::{t}"),
    ("movielens_csv", "ratings.csv"): lambda: lines(
        "{u},{i},{r},{t}", "userId,movieId,rating,timestamp"
    ),
    ("amazon_json", "Electronics_5.json"): lambda: json_rows(
        u="reviewerID", i="asin", r="overall", t="unixReviewTime"
    ),
    ("amazon2014_ratings_csv", "ratings_Electronics.csv"): lambda: lines("{u},{i},{r},{t}"),
    ("amazon2018_ratings_csv", "Electronics.csv"): lambda: lines("{i},{u},{r},{t}"),
    ("amazon2023_jsonl", "Electronics.jsonl"): lambda: json_rows(
        u="user_id", i="parent_asin", r="rating", t="timestamp"
    ),
    ("amazon2023_rating_csv", "Electronics.csv"): lambda: lines(
        "{u},{i},{r},{ms}", "user_id,parent_asin,rating,timestamp"
    ),
    ("recbole", "shop.inter"): lambda: lines(
        "{u}\t{i}\t{r}\t{t}", "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    ),
    ("pairs", "pairs.txt"): lambda: "\n".join(
        f"{u} {n}" for u in USERS for n in range(1, 5)
    ).encode(),
    ("sequences", "sequences.txt"): lambda: "\n".join(f"{u} 1 2 3 4" for u in USERS).encode(),
    ("csv", "any.csv"): lambda: lines('{u},"{i}",{t}', "user,item,timestamp"),
    ("csv", "any.csv.gz"): lambda: gzip.compress(
        lines("{u},{i},{t}", "user,item,timestamp"), mtime=0
    ),
    ("jsonl", "any.jsonl"): lambda: json_rows(u="user", i="item", t="timestamp"),
    ("parquet", "any.parquet"): parquet_rows,
}
"""Source and name of a raw file → what stands in it."""


def read_raw(source: str, path: Path) -> None:
    """Read a raw file to its end, as a preparation does first."""
    config = PreparationConfig()
    with refusing_unreadable(path):
        collect_interactions(SOURCES[source](path, config), config, path.name)


def raw_target(source: str, file: str) -> Target:
    """Write and read a raw file."""
    return Target(
        lambda folder: (folder / file).write_bytes(RAW[source, file]()),
        file,
        lambda folder: read_raw(source, folder / file),
    )


ARROW = "data-00000-of-00001.arrow"
TARGETS = {
    "experiment": Target(
        make_experiment,
        "experiment.yaml",
        lambda folder: load_experiment(folder / "experiment.yaml"),
    ),
    "model config": Target(make_model, "config.json", check_model),
    "model weights": Target(make_model, "model.safetensors", check_model),
    "vocabulary": Target(
        make_dataset, "tokenizer.json", lambda folder: read_ids(folder / "tokenizer.json")
    ),
    "dataset statistics": Target(make_dataset, "statistics.json", load_prepared),
    "dataset histories": Target(make_dataset, f"test/{ARROW}", load_prepared),
    "dataset state": Target(make_dataset, "train/state.json", load_prepared),
    **{f"{source} {file}": raw_target(source, file) for source, file in RAW},
}


@functools.cache
def whole(folder: Path, name: str) -> bytes:
    """Make what a target reads, and tell the content of the file that is to be damaged."""
    target = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    target.make(folder)
    return (folder / target.file).read_bytes()


def judge(name: str, folder: Path, content: bytes) -> str:
    """Let a target read a damaged file.

    Returns:
        `read` or `refused`, or what was raised that is not ours.
    """
    target = TARGETS[name]
    path = folder / target.file
    path.write_bytes(content)
    try:
        target.read(folder)
    except (ValueError, FileNotFoundError) as error:
        is_named = str(folder) in str(error) or path.name in str(error)
        return "refused" if is_named and is_ours(error) else tell(error)
    except Exception as error:  # noqa: BLE001 - all that is not ours is a finding
        return tell(error)
    return "read"


def is_ours(error: Exception) -> bool:
    """Whether an error was written for a user, and not by a library for its own."""
    kind = type(error)
    return kind in (ValueError, FileNotFoundError) or kind.__module__.startswith("bert4rec_hf.")


def tell(error: Exception) -> str:
    """Name a finding such that equal ones are counted together."""
    return f"{type(error).__name__}: {re.sub('[0-9]+', 'N', str(error))[:150]}"
