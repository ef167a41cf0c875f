"""Nearest neighbours on frozen features, against scikit-learn, and the features themselves."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from scipy.stats import binom
from sklearn.neighbors import KNeighborsClassifier

from hf_mae_robust.__main__ import main
from hf_mae_robust.analysis import knn
from hf_mae_robust.analysis.knn import knn_accuracy
from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.data.features import extract_features, features_by_row
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import EvaluationTransform, evaluation_processor
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetune import make_parser, prepare
from hf_mae_robust.model import ViTMAERobustModel
from hf_mae_robust.training.predictions import Predictions
from tests.helpers import as_flags, finetuning_settings, photos, write_parquet_set

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 40, "validation": 23})


def by_sklearn(train, train_labels, features, labels, k: int, temperature: float) -> dict[str, float]:
    """Weights exp((s - 1) / T): relative to those of s / T, all the same."""
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / temperature)
    )
    classifier.fit(train.double().numpy(), train_labels.numpy())
    votes = np.zeros((len(labels), int(max(train_labels.max(), labels.max())) + 1))
    votes[:, classifier.classes_] = classifier.predict_proba(features.double().numpy())
    own = votes[np.arange(len(labels)), labels]
    place = (votes > own[:, None]).sum(axis=1)
    return {f"{name}accuracy": np.mean((place < n) & (own > 0)) for name, n in (("", 1), ("top5_", 5))}


def clusters(count: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=rng)
    scales = torch.rand(count, 1, generator=rng) * 10 + 0.1  # cosine does not feel them
    return (centres[labels] + 1.5 * torch.randn(count, 12, generator=rng)) * scales, labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (50, 0.2)])
@pytest.mark.parametrize("num_classes", [3, 15])
def test_accuracies_are_those_of_sklearn(k, temperature, num_classes):
    data = *clusters(200, num_classes, 1), *clusters(90, num_classes, 2)
    found = knn_accuracy(*data, k=k, temperature=temperature, batch_size=32)
    assert found == pytest.approx(by_sklearn(*data, k, temperature), abs=1e-12)
    assert 0.2 < found["accuracy"] < 1


@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_a_low_temperature_leaves_the_vote_to_the_nearest(temperature):
    """exp(s / T) by itself would be infinite for all of them."""
    train, labels = clusters(200, 4, 1)
    assert knn_accuracy(train, labels, train * 3, labels, k=20, temperature=temperature)["accuracy"] == 1


def test_a_vote_counted_by_hand():
    """Three neighbours of class 1 at 60 degrees outvote one of class 0 at 0 degrees where T is high only:
    3 exp(0.5 / T) > exp(1 / T) means T > 0.5 / ln 3 = 0.455."""
    angles = torch.tensor([0.0, math.pi / 3, -math.pi / 3, math.pi / 3, math.pi])
    train = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[5.0], [1], [2], [3], [9]])
    train_labels, image = torch.tensor([0, 1, 1, 1, 2]), torch.tensor([[2.0, 0.0]])
    for temperature, winner in ((0.44, 0), (0.47, 1)):
        for label in range(3):
            found = knn_accuracy(train, train_labels, image, torch.tensor([label]), k=4, temperature=temperature)
            assert found["accuracy"] == (label == winner)
            assert found["top5_accuracy"] == (label != 2)  # the fifth neighbour has no vote


def test_more_neighbours_than_images_are_all_of_them():
    data = *clusters(30, 7, 1), *clusters(40, 7, 2)
    assert knn_accuracy(*data, k=1000) == knn_accuracy(*data, k=30)
    assert knn_accuracy(*data, k=1000) == pytest.approx(by_sklearn(*data, 30, 0.07), abs=1e-12)


def test_a_class_that_has_no_neighbours_is_never_right():
    train, labels = clusters(30, 2, 1)
    found = knn_accuracy(train, labels, train, torch.full((30,), 8), k=5)
    assert found == {"accuracy": 0.0, "top5_accuracy": 0.0}


def open_labelled(folder, streaming: bool = False):
    return open_splits(DataLocation(str(folder), label_column_name="auto", dataset_streaming=streaming))


def one_by_one(encoder, pictures: list[np.ndarray]) -> torch.Tensor:
    """The features of images that are 16 x 16 already, so that the preprocessing is the normalisation alone."""
    with torch.no_grad():
        images = [torch.from_numpy((image / 255 - MEAN) / STD).permute(2, 0, 1).float()[None] for image in pictures]
        return torch.cat([encoder(image) for image in images])


def all_features(encoder, source, **options):
    transform = EvaluationTransform(evaluation_processor(16, crop_pct=1.0))
    return extract_features(encoder, source, transform, 3, **{"batch_size": 7, "num_workers": 0, **options})


@pytest.mark.parametrize(
    ("streaming", "pooling", "workers"), [(False, "cls", 0), (True, "mean", 0), (False, "mean", 2), (True, "cls", 2)]
)
def test_features_are_those_of_the_encoder_in_the_order_of_the_rows(
    encoder_dir, photos_dir, streaming, pooling, workers
):
    encoder, _ = load_encoder(str(encoder_dir), pooling)
    train, _ = open_labelled(photos_dir, streaming)
    features, labels = all_features(encoder, train, num_workers=workers)
    assert features.dtype == torch.float32 and features.shape == (40, 32) and labels.dtype == torch.int64
    torch.testing.assert_close(features, one_by_one(encoder, photos(40)), atol=1e-5, rtol=1e-4)
    assert labels.tolist() == [row % 2 for row in range(40)]


def test_images_that_cannot_be_decoded_are_left_out_with_their_labels(encoder_dir, tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"image": photos(12), "label": [row % 2 for row in range(12)]}, features=features)
    data = data.cast_column("image", Image(decode=False))
    bad = (0, 5, 11)

    def spoil(row, i):
        return {"image": {"bytes": b"no image" if i in bad else row["image"]["bytes"], "path": None}}

    data.map(spoil, with_indices=True, features=data.features).cast_column("image", Image()).to_parquet(
        tmp_path / "train.parquet"
    )
    encoder, _ = load_encoder(str(encoder_dir))
    source, _ = open_labelled(tmp_path)
    features, labels = all_features(encoder, source, max_bad_images=0.25)
    good = [row for row in range(12) if row not in bad]
    expected = one_by_one(encoder, [image for row, image in enumerate(photos(12)) if row in good])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    assert labels.tolist() == [row % 2 for row in good]
    with pytest.raises(DataError, match=r"3 of 12 images .* cannot be decoded.*row 0"):
        all_features(encoder, source, max_bad_images=0.2)


def analyze(encoder_dir, folder, *more) -> None:
    command = ["analyze", "knn", str(encoder_dir), "--dataset_name", str(folder), "--num_workers", "0"]
    main([*command, "--crop_pct", "1", *map(str, more)])


def test_the_command_prints_and_writes_what_sklearn_finds(encoder_dir, photos_dir, tmp_path, capsys):
    path = tmp_path / "new" / "knn.json"
    analyze(encoder_dir, photos_dir, "--k", 7, "--temperature", 0.2, "--pooling", "mean", "--output", path)
    encoder, _ = load_encoder(str(encoder_dir), "mean")
    parts = []
    for count, seed in ((40, 0), (23, 1)):
        parts += [one_by_one(encoder, photos(count, seed=seed)), torch.arange(count) % 2]
    expected = by_sklearn(*parts, 7, 0.2)
    result = json.loads(path.read_text())
    assert {name: result.pop(name) for name in expected} == pytest.approx(expected)
    ends = [result.pop(f"accuracy_ci95_{end}") for end in ("low", "high")]
    assert ends == pytest.approx(binom.ppf([0.025, 0.975], 23, expected["accuracy"]) / 23)
    assert [result.pop(f"top5_accuracy_ci95_{end}") for end in ("low", "high")] == [1, 1]
    assert result == {
        "checkpoint": str(encoder_dir),
        "dataset": str(photos_dir),
        "k": 7,
        "temperature": 0.2,
        "pooling": "mean",
        "neighbours": 40,
        "images": 23,
    }
    printed = capsys.readouterr().out
    assert f"kNN accuracy {expected['accuracy']:.4f}, top-5 1.0000 on 23 images" in printed
    assert "(k 7 of 40, temperature 0.2, mean features)" in printed
    assert f"95% interval of the accuracy: {ends[0]:.4f} to {ends[1]:.4f}" in printed
    assert f"the most frequent class alone: {12 / 23:.4f}" in printed


def test_the_vote_on_each_image_is_written(encoder_dir, photos_dir, tmp_path):
    path = tmp_path / "new" / "votes.csv"
    analyze(encoder_dir, photos_dir, "--k", 3, "--temperature", 0.3, "--predictions", path)
    encoder, _ = load_encoder(str(encoder_dir))
    train, images = (one_by_one(encoder, photos(count, seed=seed)) for count, seed in ((40, 0), (23, 1)))
    weighted = KNeighborsClassifier(3, metric="cosine", algorithm="brute", weights=lambda far: np.exp(-far / 0.3))
    votes = weighted.fit(train.double(), np.arange(40) % 2).predict_proba(images.double().numpy())
    found = Predictions.read(path)
    assert found.rows.tolist() == list(range(23)) and found.labels.tolist() == [row % 2 for row in range(23)]
    assert found.predicted.tolist() == votes.argmax(axis=1).tolist() and 0 < found.predicted.mean() < 1
    assert found.probabilities == pytest.approx(votes.max(axis=1), abs=1e-4)
    assert path.read_text().splitlines()[2].endswith((",b,a", ",b,b"))


def test_another_checkpoint_is_compared_image_by_image(encoder_dir, photos_dir, tmp_path, capsys):
    """With one of other weights, and with itself. Expected: both by sklearn, and the binomial test by counting."""
    other, path = tmp_path / "other", tmp_path / "knn.json"
    model = ViTMAERobustModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(other)
    analyze(encoder_dir, photos_dir, "--k", 3, "--other", other, "--output", path)
    result, printed = json.loads(path.read_text()), capsys.readouterr().out
    hits, fields = [], []
    for folder in (encoder_dir, other):
        encoder, _ = load_encoder(str(folder))
        parts = []
        for count, seed in ((40, 0), (23, 1)):
            parts += [one_by_one(encoder, photos(count, seed=seed)), torch.arange(count) % 2]
        each = [by_sklearn(*parts[:2], parts[2][i : i + 1], parts[3][i : i + 1], 3, 0.07) for i in range(23)]
        hits.append(np.array([found["accuracy"] for found in each]))
        analyze(folder, photos_dir, "--k", 3, "--output", tmp_path / "alone.json")
        fields.append(json.loads((tmp_path / "alone.json").read_text()))
    found, second = result.pop("comparison"), result.pop("other")
    assert result == fields[0] and {**fields[1], **second} == fields[1]
    only_first, only_second = ((hits[i] > hits[1 - i]).sum() for i in (0, 1))
    assert (found["only_first"], found["only_second"]) == (only_first, only_second) and only_first + only_second > 3
    assert found["difference"] == pytest.approx(hits[0].mean() - hits[1].mean())
    assert found["low"] <= found["difference"] <= found["high"]
    discordant, few = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(discordant, i) for i in range(few + 1)) / 2**discordant
    assert found["p_value"] == pytest.approx(min(1, 2 * tail))
    assert f"minus {other}: {found['difference']:+.4f}" in printed and len(printed.splitlines()) == 3
    analyze(encoder_dir, photos_dir, "--other", encoder_dir)
    assert "right alone: 0 and 0 images, exact McNemar test p = 1" in capsys.readouterr().out


def test_the_command_takes_the_first_images_only_and_streams(encoder_dir, photos_dir, tmp_path):
    results = []
    for flags in ([], ["--dataset_streaming"]):
        path = tmp_path / f"{len(flags)}.json"
        analyze(encoder_dir, photos_dir, *flags, "--max_train_samples", 11, "--max_eval_samples", 9, "--output", path)
        results.append(json.loads(path.read_text()))
    assert results[0] == results[1]
    assert (results[0]["neighbours"], results[0]["images"], results[0]["pooling"]) == (11, 9, "cls")


def test_the_images_held_out_are_those_that_fine_tuning_holds_out(encoder_dir, tmp_path, monkeypatch):
    """A folder of classes without splits; the same seed, and a sample of both parts."""
    for i, picture in enumerate(photos(40)):
        path = tmp_path / "set" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(picture).save(path)
    flags = ["--train_val_split", "0.25", "--seed", "7", "--max_train_samples", "20"]
    sources = []

    def spy(encoder, source, *more, **options):
        sources.append(source)
        return features_by_row(encoder, source, *more, **options)

    monkeypatch.setattr(knn, "features_by_row", spy)
    analyze(encoder_dir, tmp_path / "set", *flags, "--output", tmp_path / "knn.json")
    result = json.loads((tmp_path / "knn.json").read_text())
    assert (result["neighbours"], result["images"]) == (20, 10)
    settings = finetuning_settings(tmp_path / "set", encoder_dir, tmp_path / "out")
    trainer, _ = prepare(make_parser().parse(as_flags(settings, *flags)))
    found, trained = (
        [paths(part) for part in parts] for parts in (sources, (trainer.train_source, trainer.eval_source))
    )
    assert found == trained
    assert len(set(found[0])) == 20 and len(set(found[1])) == 10 and not set(found[0]) & set(found[1])
    analyze(encoder_dir, tmp_path / "set", "--train_val_split", "0.25", "--seed", "8")
    assert set(paths(sources[3])) != set(found[1])


def paths(source):
    return [Path(source.rows[row]["path"]).name for row in range(source.num_rows)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "0"], "--k 0"),
        (["--temperature", "0"], "--temperature 0: must be above 0"),
        (
            ["--eval_split_name", "none"],
            "no split to classify beside 'train'; hold images out with --train_val_split 0.1",
        ),
        (["--train_val_split", "1"], "--train_val_split 1: must be at least 0 and below 1"),
        (["--eval_split_name", "testing"], "no split 'testing'"),
        (["--label_column_name", "kind"], "no column 'kind'"),
        (["--max_eval_samples", "0"], "--max_eval_samples 0: must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(encoder_dir, photos_dir, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        analyze(encoder_dir, photos_dir, *flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_data_set_without_labels_is_an_error(encoder_dir, tmp_path, capsys):
    images = Dataset.from_dict({"image": photos(4)}, features=Features({"image": Image()}))
    for split in ("train", "validation"):
        images.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(SystemExit):
        analyze(encoder_dir, tmp_path)
    assert "no column of labels: choose one with --label_column_name. It has: image" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_an_error(photos_dir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        analyze(tmp_path / "nowhere", photos_dir)
    assert "nowhere" in capsys.readouterr().err
