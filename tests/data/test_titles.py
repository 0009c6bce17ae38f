import gzip

import pytest

from bert4rec_hf.data.titles import read_titles

TITLE_FILES = {
    "movies.dat": b"1::Amelie: the film (2001)::Comedy\n2::Am\xe9lie (2001)::Comedy\n",
    "u.item": b"1|Amelie: the film (2001)|01-Jan-2001||x\n2|Am\xe9lie (2001)|01-Jan-2001||x\n",
    "movies.csv": (
        'movieId,title,genres\r\n1,"Amelie: the film (2001)",Comedy\r\n2,Amélie (2001),x\r\n'
    ).encode(),
    "tiny.item": (
        "item_id:token\tmovie_title:token_seq\n1\tAmelie: the film (2001)\n2\tAmélie (2001)\n"
    ).encode(),
    "meta_Films.jsonl": (
        '{"price": 3, "title": "Amelie: the film (2001)", "parent_asin": "1"}\n'
        '{"title": "Amélie \\n(2001)", "parent_asin": "2"}\n{"parent_asin": "3", "title": null}\n'
    ).encode(),
    "meta_Films.json": (
        "{'asin': '1', 'title': 'Amelie: the film (2001)'}\n"
        "{'asin': '2', 'price': 3.5, 'title': \"Amélie (2001)\"}\n{'asin': '3'}\n"
    ).encode(),
}


@pytest.mark.parametrize("name", TITLE_FILES)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_titles_are_read_for_the_items_asked_for(tmp_path, name, ending):
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(gzip.compress(TITLE_FILES[name]) if ending else TITLE_FILES[name])
    assert read_titles(path, ["2", "3", "7"]) == {"2": "Amélie (2001)"}
    assert read_titles(path, ["1"]) == {"1": "Amelie: the film (2001)"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("titles.xls", r"files that end with movies.dat, .*\.jsonl, .*got titles.xls"),
        ("other.csv", "other.csv needs one of the columns item, .* its columns are 'a', 'b'"),
    ],
)
def test_a_file_without_titles_is_refused(tmp_path, name, message):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message):
        read_titles(tmp_path / name, ["1"])
