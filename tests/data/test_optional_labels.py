"""Labels of which some, or all, are missing."""

import pytest
from datasets import ClassLabel, Features, Image, Value

from hf_mae_robust.data.optional_labels import OptionalLabels, find_labels_if_any
from hf_mae_robust.errors import DataError

WITHOUT = Features({"image": Image()})


def test_missing_labels_are_minus_one():
    labels = OptionalLabels("label", ("a", "b"), None, "set")
    assert labels.check([1, None, 0, -1]).tolist() == [1, -1, 0, -1] and labels.check([]).tolist() == []
    named = OptionalLabels("label", ("cat", "dog"), {"cat": 0, "dog": 1}, "set")
    assert named.check(["dog", None, "cat"], None).tolist() == [1, -1, 0]


@pytest.mark.parametrize(("value", "row"), [(2, 11), (-2, 11), ("x", 11)])
def test_what_is_no_class_is_an_error(value, row):
    with pytest.raises(DataError, match="'label'"):
        OptionalLabels("label", ("a", "b"), None, "set").check([None, value], row - 1)


def test_auto_takes_labels_where_there_are_some(capsys):
    features = Features({"image": Image(), "kind": ClassLabel(names=["x", "y"])})
    found = find_labels_if_any(features, "auto", "set", None)
    assert (found.column, found.class_names) == ("kind", ("x", "y")) and capsys.readouterr().out == ""
    assert find_labels_if_any(WITHOUT, "auto", "set", None) is None
    assert "Without labels: set has no column of labels" in capsys.readouterr().out
    of_words = Features({"image": Image(), "label": Value("string")})
    found = find_labels_if_any(of_words, "auto", "set", lambda column: ["dog", None, "cat"])
    assert found.check(["cat", None, "dog"]).tolist() == [0, -1, 1]


def test_a_column_that_was_named_has_to_be_there():
    with pytest.raises(DataError, match="no column 'label'"):
        find_labels_if_any(WITHOUT, "label", "set", None)
