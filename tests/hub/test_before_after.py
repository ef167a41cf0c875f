"""The table of an encoder before and after a run that starts from it."""

import pytest

from hf_mae_robust.hub.before_after import before_and_after


def log(*entries):
    """As the Trainer's: other entries lie between."""
    history = [{"loss": 1.0, "step": 1}]
    for step, values in entries:
        history.append({**{f"diagnostics/{name}": value for name, value in values.items()}, "step": step})
    return [*history, {"train_runtime": 1.0, "step": 9}]


UNLABELLED = {"mean/rank": 9.0, "mean/uniformity": -2.0, "encoder 2/similarity": 0.3, "encoder 10/similarity": 0.4}


def test_the_first_and_the_last_of_the_log_are_compared():
    middle = {"knn_accuracy": 0.1, "linear_probe_accuracy": 0.1}
    before, after = {"knn_accuracy": 0.5, **UNLABELLED}, {"knn_accuracy": 0.625, **UNLABELLED, "mean/rank": 4.0}
    found = before_and_after(log((0, before), (4, middle), (9, after)))
    assert found.rows[0] == ("Nearest neighbours, accuracy", 0.5, 0.625) and found.steps == 9
    assert [row[1:] for row in found.rows[1:]] == [(9.0, 4.0), (-2.0, -2.0), (0.4, 0.4)]
    assert found.verdict == "", "labels alone tell, where there are any"
    lines = str(found).splitlines()
    assert "before" in lines[0] and "after 9 steps" in lines[0] and lines[1].split()[-2:] == ["0.5", "0.625"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"knn_accuracy": 0.4}, "got worse on these labels (nearest neighbours, accuracy 0.5 -> 0.4)"),
        ({"knn_accuracy": 0.5}, None),
        ({"knn_accuracy": 0.499}, None),  # one image of a thousand
    ],
)
def test_with_labels_a_sentence_says_when_it_got_worse(change, says):
    verdict = before_and_after(log((0, {"knn_accuracy": 0.5}), (9, change))).verdict
    assert (verdict == "") if says is None else (says in verdict)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean/rank": 8.0}, "may have got worse (effective rank of the images' features 9 -> 8)"),
        ({"encoder 10/similarity": 0.9}, "last block 0.4 -> 0.9"),
        ({"mean/rank": 8.9999, "encoder 10/similarity": 0.4001}, None),
        ({"mean/uniformity": -1.0, "mean/rank": 10.0, "encoder 2/similarity": 0.9}, None),
    ],
)
def test_without_labels_rank_and_similarity_hint(change, says):
    verdict = before_and_after(log((0, UNLABELLED), (9, {**UNLABELLED, **change}))).verdict
    assert (verdict == "") if says is None else (says in verdict and "--label_column_name" in verdict)


@pytest.mark.parametrize(
    "entries",
    [[], [(0, UNLABELLED)], [(3, UNLABELLED), (9, UNLABELLED)], [(0, {"loss": 1.0}), (9, {"loss": 0.5})]],
    ids=["nothing", "the start alone", "no start", "the loss alone"],
)
def test_what_cannot_be_compared_is_not(entries):
    assert before_and_after(log(*entries)) is None
