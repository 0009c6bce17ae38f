import pytest

from bert4rec_hf.commands.huge_pages import VARIABLE, use_huge_pages


@pytest.mark.parametrize(
    ("setting", "given", "is_used"),
    [
        ("always [madvise] never", None, True),
        ("[always] madvise never", None, True),
        ("always madvise [never]", None, False),
        ("always [madvise] never", "0", False),
        (None, None, False),
    ],
)
def test_huge_pages_are_used_where_the_kernel_offers_them(
    tmp_path, monkeypatch, setting, given, is_used
):
    monkeypatch.delenv(VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(VARIABLE, given)
    path = tmp_path / "enabled"
    if setting:
        path.write_text(setting + "\n")
    assert use_huge_pages(path) == is_used
