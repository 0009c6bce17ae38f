"""Small files of the kinds that public bug reports describe, and what is right for each."""

import bz2
import gzip
import json
import lzma
import re

import polars as pl
import pyarrow as pa
import pytest

from bert4rec_hf.commands import prepare
from bert4rec_hf.data.prepared import load_prepared

START = 1_433_000_000
HEADER = "user,item,timestamp"
FIFTEEN = {"users": 3, "items": 5, "interactions": 15}


def rows_of(line, users=(1, 2, 3), items=(1, 2, 3, 4, 5)):
    """One line for every user and item, oldest first, a day after the other."""
    return [
        line.format(u=user, i=item, t=START + 86_400 * place, day=place + 1)
        for user in users
        for place, item in enumerate(items)
    ]


def write(folder, name, lines):
    path = folder / name
    path.write_bytes(lines if isinstance(lines, bytes) else "\n".join([*lines, ""]).encode())
    return path


@pytest.fixture
def prepared(tmp_path, capsys):
    """Run the command as a user does: the dataset, and what was printed."""
    outputs = (tmp_path / f"prepared-{number}" for number in range(9))

    def run(source, path, *options):
        output = next(outputs)
        prepare.main([source, str(path), "--output", str(output), *map(str, options)])
        return load_prepared(output), capsys.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path):
    """Run the command as a user does: the message with which it ends."""

    def run(source, path, *options):
        output = tmp_path / "refused"
        with pytest.raises(SystemExit) as error:
            prepare.main([source, str(path), "--output", str(output), *map(str, options)])
        assert not output.exists()
        return str(error.value)

    return run


def counts(dataset):
    return dataset.statistics["before"]


def items(dataset, ids):
    return dataset.tokenizer.convert_ids_to_tokens(list(ids))


# Separated text


def test_an_inch_sign_in_a_column_that_is_not_read_loses_no_row(tmp_path, prepared):
    lines = rows_of('u{u},i{i},{t},a 5" pipe')
    lines[2] = lines[2].replace('5"', "5")
    dataset, _ = prepared("csv", write(tmp_path, "any.csv", [f"{HEADER},review", *lines]))
    assert counts(dataset) == FIFTEEN


def test_a_decimal_comma_in_a_column_that_is_not_read_is_refused_by_its_line(tmp_path, refused):
    lines = rows_of("u{u},i{i},9,{t},2")
    lines[6] = "u2,i2,12,50,1433086400,2"
    path = write(tmp_path, "orders.csv", ["user,item,price,timestamp,qty", *lines])
    message = "line 8 of orders.csv has 6 fields, not 5 as its header has: 'u2,i2,12,50,1433086400"
    assert message in refused("csv", path)


@pytest.mark.parametrize(
    ("source", "separator"), [("ml100k", "\t"), ("ml1m", "::"), ("amazon2014_ratings_csv", ",")]
)
def test_a_short_row_is_refused_by_its_line(tmp_path, refused, source, separator):
    lines = rows_of("u{u};B00000000{i};5;{t}")
    lines[3] = "u1;B000000004;5"
    path = write(tmp_path, "raw.txt", [line.replace(";", separator) for line in lines])
    assert "line 4 of raw.txt has 3 fields, not 4 as columns are named" in refused(source, path)


def test_a_quote_that_is_never_closed_is_refused_by_its_line(tmp_path, refused):
    lines = rows_of("u{u},i{i},{t},fine")
    lines[4] = lines[4].replace("fine", '"not fine')
    path = write(tmp_path, "any.csv", [f"{HEADER},review", *lines])
    assert "line 6 of any.csv has a field that begins with a quote" in refused("csv", path)


def test_text_after_a_quoted_part_is_refused_unless_quotes_are_text(tmp_path, prepared, refused):
    lines = ["user\titem\ttimestamp", *rows_of('u{u}\t"Weird Al" {i}\t{t}')]
    path = write(tmp_path, "any.tsv", lines)
    message = "line 2 of any.tsv has a field that begins with a quote, but '\t' expected after"
    assert message in refused("csv", path, "--separator", r"\t")
    dataset, _ = prepared("csv", path, "--separator", r"\t", "--quote", "")
    assert items(dataset, [2]) == ['"Weird Al" 1']


def test_another_separator_is_named(tmp_path, prepared, refused):
    path = write(tmp_path, "p.csv", ["user;item;timestamp", *rows_of("u{u};i{i};{t}")])
    assert "p.csv has no column 'user', 'item', 'timestamp'; its columns are" in refused(
        "csv", path
    )
    assert counts(prepared("csv", path, "--separator", ";")[0]) == FIFTEEN


def test_columns_of_a_file_without_header_are_named(tmp_path, prepared, refused):
    path = write(tmp_path, "p.csv", rows_of("{t},u{u},x,i{i}"))
    dataset, _ = prepared("csv", path, "--header", "timestamp", "user", "what", "item")
    assert counts(dataset) == FIFTEEN
    message = "the first line of p.csv is not 2 columns between ',' (user, item)"
    assert message in refused("csv", path, "--header", "user", "item")


def test_lines_that_are_blank_are_no_rows(tmp_path, prepared):
    lines = rows_of("u{u},i{i},{t}")
    path = write(tmp_path, "p.csv", [HEADER, *lines[:4], "", *lines[4:], "", "  ", ""])
    assert counts(prepared("csv", path)[0]) == FIFTEEN


# Options


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "movielens_csv",
            ["--timestamp-column", "ts2"],
            "the source movielens_csv does not use timestamp_column; it applies to csv, jsonl, ",
        ),
        ("movielens_csv", ["--user-column", "user"], "movielens_csv does not use user_column"),
        ("csv", ["--num-users", 7], "the source csv does not use synthetic"),
        (
            "csv",
            ["--test-users", 7],
            "the split leave_one_out does not use test_users; it applies to",
        ),
        (
            "csv",
            ["--rating-column", "stars"],
            "rating_column would have no effect: it is read only with",
        ),
        ("csv", ["--explode", "items"], "the source csv does not use explode"),
        (
            "csv",
            ["--order", "file", "--timestamp-format", "seconds"],
            "timestamp_format would have no effect: order=file reads no times",
        ),
    ],
)
def test_an_option_that_would_not_act_is_refused(tmp_path, refused, source, options, message):
    path = write(tmp_path, "ratings.csv", ["userId,movieId,rating,timestamp,ts2", "1,1,4,99,1"])
    assert message in refused(source, path, *options)


def test_the_times_of_recbole_can_be_named_or_given_up(tmp_path, prepared, refused):
    lines = [f"{u}\t{i}\t{START - i}.0" for u in (1, 2, 3) for i in range(11, 16)]
    path = write(tmp_path, "y.inter", ["user_id:token\titem_id:token\ttime:float", *lines])
    dataset, _ = prepared("recbole", path, "--timestamp-column", "time")
    assert items(dataset, dataset.train[0]) == ["15", "14", "13"]
    assert re.search(
        "y.inter has no timestamps, .* --timestamp-column, .* --order file",
        refused("recbole", path),
    )
    dataset, out = prepared("recbole", path, "--order", "file")
    assert items(dataset, dataset.train[0]) == ["11", "12", "13"]
    assert "times: none; the order of the file is taken as the order of time" in out


def test_a_rating_of_zero_is_a_threshold(tmp_path, prepared):
    lines = [f"{u}\t{i}\t{-7.8 if i == 2 else 4.1}" for u in (1, 2, 3) for i in range(1, 6)]
    path = write(tmp_path, "jester.inter", ["user_id:token\titem_id:token\trating:float", *lines])
    dataset, out = prepared("recbole", path, "--min-rating", 0, "--order", "file")
    assert dataset.statistics["after"] == {"users": 3, "items": 4, "interactions": 12}
    assert "dropped by min_rating: 3" in out


def test_rows_can_be_chosen_by_the_values_of_columns(tmp_path, prepared, refused):
    lines = rows_of("u{u},i{i},{t},buy,de") + rows_of("u{u},i{i},{t},view,de")
    lines += rows_of("u{u},i{i},{t},rent,de") + rows_of("u{u},i{i},{t},buy,fr")
    path = write(tmp_path, "log.csv", [f"{HEADER},event,country", *lines])
    where = ["--where", "event=buy", "event=rent", "country!=fr"]
    dataset, out = prepared("csv", path, *where)
    assert counts(dataset)["interactions"] == 30
    assert "dropped by where: 30" in out
    message = "no row of log.csv has event=click; the values of event are 'buy', 'rent', 'view'"
    assert message in refused("csv", path, "--where", "event=click")
    message = "where names 'type'; the columns of log.csv are 'user', 'item'"
    assert message in refused("csv", path, "--where", "type=buy")
    assert "where must be like event=purchase" in refused("csv", path, "--where", "event")


# Nothing becomes somebody


NOBODY = ["", "  ", "NA", "NaN", "null", "NULL", "None", r"\N", "-1", "N/A"]


@pytest.mark.parametrize(
    ("nobody", "column"), [*((word, "user") for word in NOBODY), ("", "item"), ("NaN", "item")]
)
def test_nothing_is_nobody(tmp_path, prepared, refused, nobody, column):
    lines = rows_of("u{u},i{i},{t}")
    nothing = {"user": "{},i7,1433000000", "item": "u1,{},1433000000"}[column].format(nobody)
    path = write(tmp_path, "p.csv", [HEADER, *lines[:3], nothing, *lines[3:], nothing])
    message = f"line 5 of p.csv has no {column}: .*2 of 17 interactions .*--drop-incomplete drops"
    assert re.search(message, refused("csv", path))
    dataset, out = prepared("csv", path, "--drop-incomplete")
    assert counts(dataset) == FIFTEEN
    assert f"dropped by missing {column}: 2\n" in out
    assert "rows                    17\n" in out


def test_what_means_nothing_can_be_named(tmp_path, prepared, refused):
    path = write(tmp_path, "p.csv", [HEADER, *rows_of("{u},i{i},{t}", users=(-1, 2, 0))])
    assert counts(prepared("csv", path, "--missing")[0]) == FIFTEEN
    assert "line 12 of p.csv has no user" in refused("csv", path, "--missing", "0")


def test_nan_and_null_of_parquet_are_nobody(tmp_path, prepared, refused):
    users = [1.0] * 5 + [2.0] * 5 + [None] * 5 + [float("nan")] * 3
    columns = {"user": users, "item": [*"abcde" * 3, *"abc"], "timestamp": range(100, 118)}
    pl.DataFrame(columns, schema_overrides={"user": pl.Float64}, nan_to_null=False).write_parquet(
        tmp_path / "p.parquet"
    )
    path = tmp_path / "p.parquet"
    assert re.search("line 11 of p.parquet has no user: .*8 of 18", refused("parquet", path))
    dataset, _ = prepared("parquet", path, "--drop-incomplete")
    assert counts(dataset) == {"users": 2, "items": 5, "interactions": 10}


def test_a_rating_that_is_missing_is_named_where_it_is_needed(tmp_path, prepared, refused):
    lines = [
        {"user": u, "item": i, "timestamp": i, "rating": 5} for u in "abc" for i in range(1, 6)
    ]
    del lines[0]["rating"]
    path = write(tmp_path, "p.jsonl", map(json.dumps, lines))
    assert counts(prepared("jsonl", path)[0]) == FIFTEEN
    assert "line 1 of p.jsonl has no rating" in refused("jsonl", path, "--min-rating", 3)
    dataset, _ = prepared("jsonl", path, "--min-rating", 3, "--drop-incomplete")
    assert counts(dataset)["interactions"] == 14


# Names


def test_integers_with_and_without_a_point_are_the_same_ids(tmp_path, prepared):
    lines = rows_of("u{u},10{i},{t}")
    lines[1::2] = [line.replace(",143", ".0,143") for line in lines[1::2]]
    dataset, out = prepared("csv", write(tmp_path, "p.csv", [HEADER, *lines]))
    assert counts(dataset) == FIFTEEN
    assert items(dataset, range(2, 7)) == ["101", "102", "103", "104", "105"]
    assert "items like 101.0 were read as integers" in out


def test_names_that_differ_by_a_point_are_told_where_others_are_no_numbers(tmp_path, prepared):
    lines = rows_of("u{u},{i},{t}", items=("x", "7", "7.0", "8.0"))
    dataset, out = prepared("csv", write(tmp_path, "p.csv", [HEADER, *lines]))
    assert counts(dataset)["items"] == 4
    assert "warning: 1 items occur both with and without .0, such as 7.0 and 7" in out


def test_titles_are_found_for_ids_with_a_point(tmp_path, prepared):
    write(tmp_path, "movies.csv", ["movieId,title,genres", "11,Film 1,x", "15,Film 5,x"])
    lines = rows_of("{u},1{i}.0,4.0,{t}")
    path = write(tmp_path, "ratings.csv", ["userId,movieId,rating,timestamp", *lines])
    dataset, out = prepared("movielens_csv", path)
    assert dataset.titles == {"11": "Film 1", "15": "Film 5"}
    assert "titles                   2 of 5" in out


def test_float_ids_of_parquet_are_whole_numbers(tmp_path, prepared, refused):
    columns = {"user": [1.0] * 4, "item": [11.0, 12.0, 13.0, 14.0], "timestamp": [5, 6, 7, 8]}
    pl.DataFrame(columns).write_parquet(tmp_path / "p.parquet")
    dataset, _ = prepared("parquet", tmp_path / "p.parquet")
    assert items(dataset, [2, 3, 4, 5]) == ["11", "12", "13", "14"]
    columns["item"][2] = 12.5
    pl.DataFrame(columns).write_parquet(tmp_path / "p.parquet")
    message = "row 3 has the item 12.5, which is not a whole number"
    assert message in refused("parquet", tmp_path / "p.parquet")


def test_blanks_around_names_are_cut_off_and_told(tmp_path, prepared):
    lines = rows_of("u{u},i{i},{t}")
    lines[3] = lines[3].replace("i4", " i4 ")
    dataset, out = prepared("csv", write(tmp_path, "p.csv", [HEADER, *lines]))
    assert counts(dataset) == FIFTEEN
    assert "1 items had blanks around their names, which were removed" in out


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ('"[MASK]"', r"line 2 of p.jsonl has an item named '\[MASK\]' like a special token"),
        ("[1, 2]", "line 2 of p.jsonl has a list or object as item, .*--explode makes rows"),
        ('{"id": 1}', "line 2 of p.jsonl has a list or object as item"),
        (r'"a\ud800"', "line 2 of p.jsonl has an item with a NUL .* half of a surrogate pair"),
        (r'"a\udc00"', "line 2 of p.jsonl holds half of a surrogate pair"),
    ],
)
def test_what_names_no_item_is_refused_by_its_line(tmp_path, refused, item, message):
    line = '{"user": 1, "item": "x", "timestamp": 3}'
    path = write(tmp_path, "p.jsonl", [line, line.replace('"x"', item), line])
    assert re.search(message, refused("jsonl", path))


def test_what_is_unusual_elsewhere_in_json_does_no_harm(tmp_path, prepared):
    line = r'{{"user": "u{u}", "item": {i}, "timestamp": {t}, "text": "a\ud800", "price": NaN}}'
    path = write(tmp_path, "p.jsonl", rows_of(line))
    assert counts(prepared("jsonl", path)[0]) == FIFTEEN


def test_lists_become_rows_if_asked_for(tmp_path, prepared):
    lines = ['{"user": 1, "items": [1, "2"], "timestamp": 7}', '{"user": 1, "items": [3, 1]}']
    lines[1] = lines[1].replace("}", ', "timestamp": 5}')
    path = write(tmp_path, "p.jsonl", lines)
    dataset, _ = prepared("jsonl", path, "--item-column", "items", "--explode", "items")
    assert items(dataset, dataset.test[0]) == ["3", "1", "1"]
    assert items(dataset, dataset.test.targets) == ["2"]


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_events_nested_in_sessions_become_rows(tmp_path, prepared, refused, source):
    events = [{"aid": n, "ts": START * 1000 + n, "type": "clicks"} for n in range(5)]
    lines = [
        {"session": n, "events": [*events, {**events[0], "type": "orders"}]} for n in (1, 2, 3)
    ]
    lines.append({"session": 4, "events": []})
    path = tmp_path / "p"
    if source == "jsonl":
        write(tmp_path, "p", map(json.dumps, lines))
    else:
        pl.DataFrame(lines).write_parquet(path)
    columns = ["--user-column", "session", "--item-column", "aid", "--timestamp-column", "ts"]
    where = ["--explode", "events", "--where", "type=clicks"]
    dataset, out = prepared(source, path, *columns, *where)
    assert counts(dataset) == FIFTEEN
    assert dataset.statistics["dropped"]["where"] == 3
    assert dataset.statistics["dropped"]["empty lists"] == 1
    assert dataset.statistics["rows"] == 19
    assert "times: milliseconds, from 2015-05-30 15:33:20 to 2015-05-30 15:33:20 UTC" in out
    columns[3:] = ["events", "--timestamp-column", ""]
    assert re.search("lists? or objects?.*--explode", refused(source, path, *columns))


def test_leading_zeros_of_a_vocabulary_are_told(tmp_path, prepared, refused):
    lines = rows_of("u{u},00{i},{t}")
    past, _ = prepared("csv", write(tmp_path, "past.csv", [HEADER, *lines]))
    lines = [*rows_of("u{u},00{i},{t}", items=(1, 2)), *rows_of("u{u},{i},{t}", items=(3, 4, 5))]
    path = write(tmp_path, "later.csv", [HEADER, *lines])
    message = refused("csv", path, "--vocabulary", past.folder)
    assert "interactions dropped before: 9 by vocabulary" in message
    assert "warning: 3 items are not in the vocabulary, but for zeros" in message
    assert "such as '3' and its '003'" in message


def test_ids_with_a_point_have_the_vocabulary_of_those_without(tmp_path, prepared):
    past, _ = prepared("csv", write(tmp_path, "past.csv", [HEADER, *rows_of("u{u},10{i}.0,{t}")]))
    path = write(tmp_path, "later.csv", [HEADER, *rows_of("u{u},10{i},{t}")])
    dataset, _ = prepared("csv", path, "--vocabulary", past.folder)
    assert dataset.statistics["after"] == FIFTEEN


# Times


def test_iso_times_with_a_zone_are_read(tmp_path, prepared):
    lines = rows_of("c{u},s{i},2024-03-0{day}T01:00:00+02:00")
    path = write(tmp_path, "p.csv", ["customer,sku,bought_at", *lines])
    columns = ["--user-column", "customer", "--item-column", "sku"]
    dataset, out = prepared("csv", path, *columns, "--timestamp-column", "bought_at")
    assert items(dataset, dataset.train[0]) == ["s1", "s2", "s3"]
    assert "times: dates, from 2024-02-29 23:00:00 to 2024-03-04 23:00:00 UTC" in out


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("2015-05-30T15:33:20Z", []),
        ("2015-05-30T15:33:20.000Z", []),
        ("2015-05-30 15:33:20", []),
        ("2015-05-30 15:33:20 UTC", []),
        ("2015-05-30T16:33:20+0100", []),
        ("5/30/2015 15:33:20", ["--timestamp-format", "%m/%d/%Y %H:%M:%S"]),
        (
            "Sat May 30 08:33:20 -0700 2015",
            ["--timestamp-format", "%a %b %d %H:%M:%S %z %Y"],
        ),
        ("1433000000", []),
        ("1433000000000", []),
        ("1433000000000000", []),
        ("1433000000000000000", []),
    ],
)
@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_times_are_read_in_utc(tmp_path, prepared, source, text, options):
    frame = pl.DataFrame({"user": "u", "item": [*"abc"], "timestamp": text})
    path = tmp_path / "any"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[source](
        path
    )
    _, out = prepared(source, path, *options)
    assert "from 2015-05-30 15:33:20 to 2015-05-30 15:33:20 UTC" in out


def test_a_date_without_time_is_midnight(tmp_path, prepared):
    path = write(tmp_path, "p.csv", [HEADER, *rows_of("u{u},i{i},2018-09-2{day}")])
    assert "from 2018-09-21 00:00:00 to 2018-09-25" in prepared("csv", path)[1]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["1433307732000", "1433307732"], "line 4 of p.csv has the timestamp 1433307732, while mo"),
        (["2015-03-01", "1433307732"], "line 4 of p.csv has a timestamp that is not an ISO date"),
        (["2015-03-01", "2015-02-30"], "line 4 of p.csv has a timestamp that is not an ISO date"),
        (["1433307732", "2015-03-01"], "line 4 of p.csv has a timestamp that is not a number"),
        (["1433307732", "0"], "line 4 of p.csv has the timestamp 0: .*--allow-zero-timestamps"),
        (["1433307732", "-5"], "line 4 of p.csv has a negative timestamp: .*--allow-negative"),
        (["1433307732", "NaT"], "line 4 of p.csv has no timestamp: .*--drop-incomplete"),
    ],
)
def test_times_of_two_kinds_are_refused(tmp_path, refused, times, message):
    first, second = times
    path = write(tmp_path, "p.csv", [HEADER, f"a,x,{first}", f"a,y,{first}", f"a,z,{second}"])
    assert re.search(message, refused("csv", path))


def test_early_times_can_be_allowed(tmp_path, prepared):
    path = write(tmp_path, "p.csv", [HEADER, "a,x,0", "a,y,7", "a,z,9"])
    dataset, _ = prepared("csv", path, "--allow-zero-timestamps")
    assert items(dataset, dataset.train[0]) == ["x"]
    path = write(tmp_path, "p.csv", [HEADER, "a,x,0", "a,y,-7", "a,z,9"])
    dataset, _ = prepared("csv", path, "--allow-negative-timestamps")
    assert items(dataset, dataset.train[0]) == ["y"]


def test_milliseconds_are_split_at_dates(tmp_path, prepared, refused):
    lines = rows_of("{t}000,v{u},view,{i}00,")
    path = write(tmp_path, "events.csv", ["timestamp,visitorid,event,itemid,transactionid", *lines])
    columns = ["--user-column", "visitorid", "--item-column", "itemid", "--split", "temporal"]
    days = ["--validation-time", "2015-06-01", "--test-time", "2015-06-03"]
    dataset, out = prepared("csv", path, *columns, *days)
    assert "times: milliseconds, from 2015-05-30 15:33:20 to 2015-06-03 15:33:20 UTC" in out
    assert items(dataset, dataset.test.targets) == ["500", "500", "500"]
    days = ["--validation-time", "2016-06-01", "--test-time", "2016-06-03"]
    message = refused("csv", path, *columns, *days)
    assert "times reach from 2015-05-30 15:33:20 to 2015-06-03 15:33:20" in message


# Files


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, lambda data: bytes(pa.compress(data, "zstd"))],
    ids=["gzip", "bz2", "xz", "zstandard"],
)
def test_compression_is_seen_from_the_content(tmp_path, prepared, compress):
    data = compress("\n".join([HEADER, *rows_of("u{u},i{i},{t}")]).encode())
    assert counts(prepared("csv", write(tmp_path, "p.csv", data))[0]) == FIFTEEN


def test_a_plain_file_may_be_called_gz(tmp_path, prepared):
    path = write(tmp_path, "p.csv.gz", [HEADER, *rows_of("u{u},i{i},{t}")])
    assert counts(prepared("csv", path)[0]) == FIFTEEN


def test_a_zip_archive_is_refused(tmp_path, refused):
    path = write(tmp_path, "p.csv", b"PK\x03\x04....")
    assert "p.csv is a zip archive; unpack it" in refused("csv", path)


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("utf-8-sig", []),
        ("utf-16", []),
        ("latin-1", ["--encoding", "latin-1"]),
        ("utf-16-le", ["--encoding", "utf-16-le"]),
    ],
)
def test_files_in_other_encodings_are_read(tmp_path, prepared, encoding, options):
    lines = "\n".join([HEADER, *rows_of("u{u},é{i},{t}")])
    path = write(tmp_path, "p.csv", lines.encode(encoding))
    dataset, _ = prepared("csv", path, *options)
    assert items(dataset, [2]) == ["é1"]


def test_another_encoding_is_named_by_its_line(tmp_path, refused):
    lines = "\n".join([HEADER, *rows_of("u{u},i{i},{t}"), "u1,é,7"])
    path = write(tmp_path, "p.csv", lines.encode("latin-1"))
    message = "line 17 of p.csv is not UTF-8: .*xe9,7'; .* such as --encoding latin-1"
    assert re.search(message, refused("csv", path))


def test_old_line_ends_are_read(tmp_path, prepared):
    data = "\r".join([HEADER, *rows_of("u{u},i{i},{t}")]).encode()
    assert counts(prepared("csv", write(tmp_path, "p.csv", data))[0]) == FIFTEEN


# Formats with one line per user


def test_lines_without_a_user_are_recognized(tmp_path, prepared, refused):
    path = write(tmp_path, "s.txt", ["10 11 12 13", "10 12 13 14", "11 13 14 15"])
    message = "user '10' occurs on line 1 and again: line 2 of s.txt; .*--user-column ''"
    assert re.search(message, refused("sequences", path))
    dataset, _ = prepared("sequences", path, "--user-column", "")
    assert counts(dataset) == {"users": 3, "items": 6, "interactions": 12}


RECBOLE_LISTS = "user_id:token\titem_id:token\ttimestamp:float\titem_id_list:token_seq"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2 3 4 0 0", "item_id_list is padded with 0, which was left out"),
        ("2,3,4", "item_id_list was read as separated by commas"),
        ("2 3 4", "order of the file"),
    ],
)
def test_lists_of_recbole_are_read(tmp_path, prepared, text, told):
    lines = [RECBOLE_LISTS, *(f"{user}\t6\t10{user}\t{text}" for user in (1, 2, 3))]
    dataset, out = prepared("recbole", write(tmp_path, "ml.train.inter", lines))
    assert items(dataset, dataset.test[0]) == ["2", "3", "4"]
    assert items(dataset, dataset.test.targets) == ["6", "6", "6"]
    assert told in out


def test_a_zero_that_may_be_padding_or_an_item_is_refused(tmp_path, refused):
    lines = [RECBOLE_LISTS, "1\t0\t101\t2 3 0", "2\t6\t102\t2 3 4"]
    path = write(tmp_path, "ml.train.inter", lines)
    assert "but 0 is an item elsewhere" in refused("recbole", path)


# Titles


RECBOLE = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


@pytest.mark.parametrize("name", ["movie_name", "book_title", "name", "title"])
def test_titles_of_recbole_have_several_names(tmp_path, prepared, name):
    path = write(tmp_path, "ml-20m.inter", [RECBOLE, *rows_of("{u}\t1{i}\t5.0\t{t}.0")])
    titles = [f"item_id:token\t{name}:token_seq\ttype:token_seq", "11\tFilm 1\tDrama"]
    write(tmp_path, "ml-20m.item", titles)
    assert prepared("recbole", path)[0].titles == {"11": "Film 1"}


def test_a_file_beside_the_source_without_titles_does_no_harm(tmp_path, prepared, refused):
    path = write(tmp_path, "x.inter", [RECBOLE, *rows_of("{u}\t1{i}\t5.0\t{t}.0")])
    write(tmp_path, "x.item", ["item_id:token\tlabel:token_seq", "11\tFilm 1"])
    dataset, out = prepared("recbole", path)
    assert dataset.titles == {}
    assert "warning: no titles: x.item needs one of the columns" in out
    assert prepared("recbole", path, "--title-column", "label")[0].titles == {"11": "Film 1"}
    assert "x.item needs one of the columns" in refused("recbole", path, "--title-column", "no")


def test_titles_may_stand_in_the_file_itself(tmp_path, prepared):
    path = write(tmp_path, "p.csv", [f"{HEADER},what", *rows_of("u{u},i{i},{t},Film  {i}")])
    dataset, _ = prepared("csv", path, "--title-column", "what")
    assert dataset.titles["i3"] == "Film 3"
    assert len(dataset.titles) == 5


def test_a_file_of_titles_may_have_any_columns(tmp_path, prepared):
    path = write(tmp_path, "p.csv", ["user,article_id,timestamp", *rows_of("u{u},0{i},{t}")])
    titles = write(tmp_path, "articles.csv", ["article_id,prod_name", '03,"Strap, top"'])
    options = ["--item-column", "article_id", "--titles", titles, "--title-column", "prod_name"]
    assert prepared("csv", path, *options)[0].titles == {"03": "Strap, top"}


# Repetition


def test_copies_and_targets_that_were_seen_are_told(tmp_path, prepared):
    lines = rows_of("A{u},B{i},5,{t}000")
    lines += [line for line in lines if "B5" in line]
    path = write(tmp_path, "Grocery.csv", ["user_id,parent_asin,rating,timestamp", *lines])
    dataset, out = prepared("amazon2023_rating_csv", path)
    assert counts(dataset)["interactions"] == 18
    assert "exact copies: 3\n" in out
    (line,) = [line for line in out.splitlines() if "repeat an item of their history" in line]
    assert line.startswith("test ")
    assert line.endswith(" 3 histories; 100.0% of the targets repeat an item of their history")
