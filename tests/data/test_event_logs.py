"""Public event logs by their documented commands, with a few lines of each written here."""

import gzip
import re
import shlex
from pathlib import Path

import pytest

from bert4rec_hf.commands import prepare
from bert4rec_hf.data.prepared import load_prepared

README = Path(__file__).parents[2] / "scripts" / "README.md"

# File → its lines, and what the first user did, oldest first, and a title.
LOGS = {
    "events.csv": (
        [
            "timestamp,visitorid,event,itemid,transactionid",
            "1433221332117,257597,view,355908,",
            "1433221332118,257597,addtocart,111,",
            "1433221332119,257597,view,248676,",
            "1433221332116,257597,view,318965,",
            "1433221332116,992329,transaction,7,8",
        ],
        ("257597", ["318965", "355908", "248676"]),
        None,
    ),
    "yoochoose-clicks.dat": (
        [
            "1,2014-04-07T10:54:09.868Z,214536500,0",
            "1,2014-04-07T10:51:09.277Z,214536502,0",
            "1,2014-04-07T10:57:00.306Z,214536506,S",
        ],
        ("1", ["214536502", "214536500", "214536506"]),
        None,
    ),
    "train-item-views.csv": (
        [
            "sessionId;userId;itemId;timeframe;eventdate",
            "1;NA;81766;526309;2016-05-09",
            "1;NA;31331;0;2016-05-09",
            "1;NA;32118;1031018;2016-05-09",
        ],
        ("1", ["31331", "81766", "32118"]),
        None,
    ),
    "otto-recsys-train.jsonl": (
        [
            '{"session":0,"events":[{"aid":15,"ts":1659304800025,"type":"clicks"},'
            '{"aid":11,"ts":1659304904511,"type":"clicks"},'
            '{"aid":15,"ts":1659367439426,"type":"carts"},'
            '{"aid":13,"ts":1659304800026,"type":"clicks"}]}',
            '{"session":1,"events":[{"aid":11,"ts":1659304800025,"type":"carts"}]}',
        ],
        ("0", ["15", "13", "11"]),
        None,
    ),
    "transactions_train.csv": (
        [
            "t_dat,customer_id,article_id,price,sales_channel_id",
            "2018-09-21,000058a1,0663713001,0.0508,2",
            "2018-09-20,000058a1,0541518023,0.0304,2",
            "2018-09-24,000058a1,0505221004,0.0152,2",
        ],
        ("000058a1", ["0541518023", "0663713001", "0505221004"]),
        ("0505221004", "Strap, top"),
    ),
    "articles.csv": (
        ["article_id,product_code,prod_name", '0505221004,0505221,"Strap, top"'],
        None,
        None,
    ),
    "OnlineRetail.csv": (
        [
            "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
            "536365,85123A,PANNEAU D\xc9CO,6,12/1/2010 8:26,2.55,17850.0,United Kingdom",
            '536366,71053,"LANTERN, WHITE",6,11/30/2010 18:26,3.39,17850.0,United Kingdom',
            '536367,84406B,HANGER 5" CREAM,8,12/10/2010 8:26,2.75,17850,United Kingdom',
            "536368,22752,,2,12/1/2010 8:26,7.65,,France",
        ],
        ("17850", ["71053", "85123A", "84406B"]),
        ("85123A", "PANNEAU D\xc9CO"),
    ),
    "yelp_academic_dataset_review.json": (
        [
            '{"review_id":"r1","user_id":"mh_","business_id":"XQf","stars":5.0,"useful":0,'
            '"text":"says \\"good\\"\\n","date":"2018-07-07 22:09:11"}',
            '{"review_id":"r2","user_id":"mh_","business_id":"7AT","stars":4.0,"useful":0,'
            '"text":"","date":"2012-01-03 15:28:18"}',
            '{"review_id":"r3","user_id":"mh_","business_id":"YjU","stars":2.0,"useful":0,'
            '"text":"","date":"2014-02-05 20:30:30"}',
            '{"review_id":"r4","user_id":"mh_","business_id":"kxX","stars":5,"useful":0,'
            '"text":"","date":"2015-01-04 00:01:03"}',
        ],
        ("mh_", ["7AT", "kxX", "XQf"]),
        ("XQf", "Turning Point"),
    ),
    "yelp_academic_dataset_business.json": (
        ['{"business_id":"XQf","name":"Turning Point","attributes":{"WiFi":"u\'free\'"}}'],
        None,
        None,
    ),
    "steam_reviews.json.gz": (
        [
            "{u'username': u'Chaos', u'hours': 0.1, u'product_id': u'725280', "
            "u'date': u'2017-12-17', u'text': u\"isn't\", u'early_access': False}",
            "{u'username': u'Chaos', u'product_id': u'35140', u'date': u'2016-12-17'}",
            "{u'username': u'Chaos', u'product_id': u'77', u'date': u'2018-01-04', u'page': 1}",
        ],
        ("Chaos", ["35140", "725280", "77"]),
        ("77", "Lost & Found"),
    ),
    "steam_games.json.gz": (
        ["{u'publisher': u'K', u'app_name': u'Lost & Found', u'tags': [u'Indie'], u'id': u'77'}"],
        None,
        None,
    ),
    "userid-timestamp-artid-artname-traid-traname.tsv": (
        [
            'user_1\t2009-05-04T23:08:57Z\tf1b1\t"Weird Al" Yankovic\t\tBob',
            "user_1\t2009-05-04T13:54:10Z\ta7f7\t坂本龍一\tt2\tComposition 0919",
            'user_1\t2009-05-05T13:52:04Z\tb2e2\tSay "so\t\tMc2',
            "user_1\t2009-05-05T13:52:05Z\t\tNobody\t\tNothing",
        ],
        ("user_1", ["a7f7", "f1b1", "b2e2"]),
        ("f1b1", '"Weird Al" Yankovic'),
    ),
    "UserBehavior.csv": (
        [
            "1,2268318,2520377,pv,1511544070",
            "1,2333346,2520771,buy,1511561733",
            "1,2576651,149192,buy,1511572885",
            "1,3830808,4181361,buy,1511593493",
        ],
        ("1", ["2333346", "2576651", "3830808"]),
        None,
    ),
    "loc-gowalla_totalCheckins.txt.gz": (
        [
            "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847",
            "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315",
            "0\t2010-10-17T23:42:03Z\t30.2557309927\t-97.7633857727\t316637",
        ],
        ("0", ["316637", "420315", "22847"]),
        None,
    ),
    "goodreads_interactions_dedup.json.gz": (
        [
            '{"user_id": "8842", "book_id": "24375664", "is_read": true, "rating": 5, '
            '"date_added": "Fri Aug 25 13:55:02 -0700 2017", "read_at": ""}',
            '{"user_id": "8842", "book_id": "18245960", "is_read": true, "rating": 5, '
            '"date_added": "Sun Jul 30 07:44:10 -0700 2017", "read_at": ""}',
            '{"user_id": "8842", "book_id": "999", "is_read": false, "rating": 0, '
            '"date_added": "Sun Jul 30 07:44:11 -0700 2017", "read_at": ""}',
            '{"user_id": "8842", "book_id": "6392944", "is_read": true, "rating": 3, '
            '"date_added": "Fri Aug 25 13:54:02 -0800 2017", "read_at": ""}',
        ],
        ("8842", ["18245960", "24375664", "6392944"]),
        ("6392944", "The Three"),
    ),
    "goodreads_books.json.gz": (['{"book_id": "6392944", "title": "The  Three"}'], None, None),
}
COMMANDS = {
    line.split()[3]: shlex.split(line)[2:]
    for line in README.read_text(encoding="utf-8").splitlines()
    if re.match(r"bert4rec prepare \w+ \S+ --output data/\w", line) and not line.endswith("\\")
}


def test_every_log_has_its_command():
    logs = [name for name, (_, expected, _) in LOGS.items() if expected]
    assert logs == [name for name in COMMANDS if name != "orders.parquet"]
    assert len(logs) == 12


@pytest.mark.parametrize("name", [name for name, (_, expected, _) in LOGS.items() if expected])
def test_a_log_is_read_by_its_documented_command(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file, (lines, _, _) in LOGS.items():
        encoding = "latin-1" if file == "OnlineRetail.csv" else "utf-8"
        data = "\n".join([*lines, ""]).encode(encoding)
        Path(file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    prepare.main(COMMANDS[name])
    dataset = load_prepared(COMMANDS[name][COMMANDS[name].index("--output") + 1])
    _, (user, history), title = LOGS[name]
    tokens = dataset.tokenizer.convert_ids_to_tokens
    assert tokens([*dataset.test[0].tolist(), int(dataset.test.targets[0])]) == history
    assert dataset.statistics["before"]["users"] == 1, user
    if title:
        assert dataset.titles[title[0]] == title[1]
