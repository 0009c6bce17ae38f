"""A short run of what long_run.py does at length."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert4rec_hf.config import override
from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.strict_yaml import load_yaml
from tests.fuzz.inputs import TARGETS, judge, mutate, whole

SHORT = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", TARGETS)
@SHORT
@given(number=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused(workplace, name, number):
    folder = workplace / name.replace(" ", "-")
    content = mutate(whole(folder, name), number)
    assert judge(name, folder, content) in ("read", "refused"), content[:500]


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_file_is_read(workplace, name):
    folder = workplace / f"{name.replace(' ', '-')}-whole"
    assert judge(name, folder, whole(folder, name)) == "read"


@SHORT
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_json_from_elsewhere_is_read_or_refused(workplace, content):
    path = workplace / "any.json"
    path.write_bytes(content)
    try:
        found = read_json(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert found == json.loads(content)


@SHORT
@given(content=NESTED)
def test_what_pyyaml_writes_is_read_as_pyyaml_reads_it_or_refused(content):
    text = yaml.safe_dump(content)
    try:
        found = load_yaml(text, "any.yaml")
    except ValueError as error:
        assert "any.yaml" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert repr(found) == repr(yaml.safe_load(text))


@SHORT
@given(arguments=st.lists(st.sampled_from(["--a.b", "--a.b=", "--a", "=", "[", "1"]) | st.text()))
def test_a_command_line_is_read_or_refused(arguments):
    sections = {"a": {"b": 1}}
    try:
        override(sections, arguments)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    assert sections["a"].keys() >= {"b"}
