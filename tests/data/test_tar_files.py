"""Which tars a name stands for."""

import braceexpand
import pytest

from hf_mae_robust.data.tar_files import expand_braces, named_tars
from hf_mae_robust.errors import DataError, MissingFileError


@pytest.mark.parametrize(
    "pattern",
    ["a-{000..010}.tar", "{8..11}.tar", "a{3..1}.tar", "{train,val}/{00..2}.tar", "{a,b}/{1..2}-{c,d}.tar"],
)
def test_braces_are_those_of_the_braceexpand_package(pattern):
    """That is what the webdataset package uses."""
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["a{1..}.tar", "a{b}.tar", "a{1..2.tar", "{a,{b,c}}.tar", "{1..9999}{1..9999}.tar"])
def test_other_braces_are_refused(pattern):
    with pytest.raises(DataError, match="braces hold a range or names"):
        expand_braces(pattern)


def test_tars_by_braces_and_by_lists(tmp_path):
    for name in ("a-0.tar", "a-1.tar"):
        (tmp_path / name).touch()
    both = [str(tmp_path / "a-0.tar"), str(tmp_path / "a-1.tar")]
    assert named_tars(f"{tmp_path}/a-{{0..1}}.tar") == both
    (tmp_path / "list.txt").write_text("# shards\n\na-0.tar\na-1.tar\n")
    assert named_tars(str(tmp_path / "list.txt")) == both
    (tmp_path / "images.txt").write_text("a.jpg\nb.jpg\n")
    for other in (tmp_path / "images.txt", tmp_path / "a-0.tar", tmp_path, "org/name"):
        assert named_tars(str(other)) is None
    with pytest.raises(MissingFileError, match=r"1 of 3 tars are not there, first .*a-2\.tar"):
        named_tars(f"{tmp_path}/a-{{0..2}}.tar")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a-{0..1}.tar.gz", None, "is compressed: unpack it"),
        ("a-{0..1}.parquet", None, r"is no \.tar"),
        ("list.txt", "a-0.tar.gz\n", r"a-0\.tar\.gz is compressed"),
        ("list.txt", "a-0.tar\na-1.jpg\n", None),
        ("list.txt", "https://some.where/a-0.tar\n", "not there|names addresses"),
    ],
)
def test_what_is_no_plain_tar_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    if message is None:
        assert named_tars(str(tmp_path / name)) is None
        return
    with pytest.raises((DataError, MissingFileError), match=message):
        named_tars(str(tmp_path / name))
