import time
from pathlib import Path

import pytest
import yaml

from bert4rec_hf.strict_yaml import MAX_BYTES, load_yaml, load_yaml_file

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_the_committed_configs_are_read_as_pyyaml_reads_them():
    assert len(CONFIGS) > 10
    for path in CONFIGS:
        assert load_yaml_file(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: c occurs twice here; keep one"),
        ("a: &x [1]\nb: *x", r"line 2: the alias \*x is not supported, write it out"),
        ("a: !!python/name:os.system x", "line 1: the tag .*os.system is not supported, leave it"),
        ("a: !!bool maybe", "line 1: the tag .*bool is not supported"),
        ("a:\n  <<: {b: 1}", "line 2: a name must be text, got '<<'"),
        ("a: 1\n2: b", "line 2: a name must be text, got '2'"),
        ("[1]: b", "line 1: a name must be text, got a collection"),
        ("a: 9223372036854775808", "line 1: the number 9223372036854775808 is too large"),
        ("a: 1" + "0" * 5000, "line 1: the number 10+… is too large"),
        ("a: 1" + ":59" * 9000, "line 1: the number 1:59:.*… is too large"),
        ("a: 0x" + "f" * 9000, "line 1: the number 0xf+… is too large"),
        ("[" * 20_000, "line 1: nested more than 20 deep"),
        ("{a: " * 10_000, "line 1: nested more than 20 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(300)), "nested more than 20 deep"),
        ("- " * 20_000, "line 1: nested more than 20 deep"),
        ("[" + "1," * 20_000 + "]", "line 1: more than 3,000 names and values"),
        ("a: " + "x" * MAX_BYTES, "has 50,003 characters, at most 50,000 are read"),
        ("a: \0", "special characters are not allowed"),
        ("a: [", "line 1: "),
    ],
)
def test_what_settings_do_not_need_is_refused_within_a_second(text, message):
    started = time.process_time()
    with pytest.raises(ValueError, match=f"^oven.yaml .*{message}") as caught:
        load_yaml(text, "oven.yaml")
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 300


def test_an_alias_bomb_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"bomb.yaml is not valid YAML, line 2: the alias \*a0"):
        load_yaml_file(tmp_path / "bomb.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xff", "oven.yaml is not UTF-8, line 2: invalid start byte"),
        ("a: 1".encode("utf-16"), "oven.yaml is not UTF-8, line 1: invalid start byte"),
        (b" " * 60_000, "oven.yaml has 60,000 bytes, at most 50,000 are read"),
    ],
)
def test_a_file_of_other_bytes_is_refused(tmp_path, content, message):
    (tmp_path / "oven.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_yaml_file(tmp_path / "oven.yaml")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read: No such file"):
        load_yaml_file(tmp_path / "nowhere.yaml")
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path} is no file"):
            load_yaml_file(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name_and_a_date_stays_text(tmp_path):
    (tmp_path / "oven.yaml").write_text("day: 2015-01-01", encoding="utf-8-sig")
    assert load_yaml_file(tmp_path / "oven.yaml") == {"day": "2015-01-01"}
