"""Pairs of near-duplicates, against scikit-learn's cosine similarity of everything with everything."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from sklearn.metrics.pairwise import cosine_similarity

from hf_mae_robust.__main__ import main
from hf_mae_robust.embedding import near_duplicates
from hf_mae_robust.embedding.near_duplicates import find_pairs
from tests.helpers import photos


def with_twins(count: int = 90, seed: int = 0) -> np.ndarray:
    """Vectors of which some are nearly, or exactly, others, scaled."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 16)).astype(np.float32)
    for first, second, noise in ((3, 50, 0.0), (3, 77, 0.02), (10, 11, 0.1), (0, 89, 0.3)):
        vectors[second] = 2 * (vectors[first] + noise * rng.normal(size=16))
    return vectors


def found(vectors, threshold, max_pairs=10_000, sizes=None):
    sizes = sizes or [len(vectors)]
    parts = torch.from_numpy(vectors).split(sizes)
    return find_pairs(lambda i: parts[i], sizes, threshold, max_pairs)


def expected(vectors, threshold):
    similarity = cosine_similarity(vectors.astype(np.float64))
    first, second = np.nonzero(np.triu(similarity >= threshold, 1))
    return {(a, b): similarity[a, b] for a, b in zip(first.tolist(), second.tolist())}


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("sizes", [None, [1, 40, 49], [30, 30, 30]])
def test_pairs_are_those_of_sklearn(threshold, sizes, monkeypatch):
    monkeypatch.setattr(near_duplicates, "TILE", 17)
    vectors = with_twins()
    pairs, wanted = found(vectors, threshold, sizes=sizes), expected(vectors, threshold - 1e-6)
    assert set(zip(pairs.first.tolist(), pairs.second.tolist())) == set(wanted) and pairs.total == len(wanted) > 0
    for a, b, similarity in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.similarity):
        assert similarity == pytest.approx(wanted[a, b], abs=1e-6)
    assert (np.diff(pairs.similarity) <= 0).all()


def test_of_too_many_pairs_the_most_similar_are_kept(monkeypatch):
    monkeypatch.setattr(near_duplicates, "TILE", 8)
    vectors = with_twins()
    every, some = found(vectors, 0.1), found(vectors, 0.1, max_pairs=13, sizes=[45, 45])
    assert some.total == every.total > 1000 and len(some.first) == 13
    for name in ("first", "second"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[:13])


def test_no_pairs_and_vectors_of_zeros():
    vectors = np.zeros((4, 3), np.float32)
    pairs = found(vectors, 0.5)
    assert pairs.total == 0 and len(pairs.first) == len(pairs.groups()) == 0


def test_groups_are_what_pairs_link():
    pairs = near_duplicates.Pairs(np.array([0, 7, 2, 5]), np.array([2, 9, 5, 6]), np.ones(4, np.float32), 4)
    groups = pairs.groups()
    assert groups[0] == groups[2] == groups[3] != groups[1]


def test_planted_copies_are_listed(encoder_dir, tmp_path, capsys):
    """Image 3 twice more, once as it is and once without its last bits."""
    pictures = photos(20)
    pictures[8], pictures[15] = pictures[3], pictures[3] // 2 * 2
    for i, picture in enumerate(pictures):
        path = tmp_path / "set" / ("cat", "dog")[i // 10] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(picture).save(path)
    command = ["embed", encoder_dir, "--dataset_name", tmp_path / "set", "--num_workers", 0, "--crop_pct", 1]
    command += ["--output", tmp_path / "e.parquet", "--near_duplicates", 0.995]
    main([str(word) for word in command])
    with (tmp_path / "e.near_duplicates.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert (rows[0]["file_name_1"], rows[0]["file_name_2"]) == ("cat/03.png", "cat/08.png")
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-6)
    assert {(row["row_1"], row["row_2"]) for row in rows} == {("3", "8"), ("3", "15"), ("8", "15")}
    assert {row["group"] for row in rows} == {"0"} and {row["label_2"] for row in rows[1:]} == {"dog"}
    assert "3 pairs" in capsys.readouterr().out
