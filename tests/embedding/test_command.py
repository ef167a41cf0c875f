"""embed, against loops written with transformers; killed and resumed, and on two processes; what datasets and pandas
make of its file."""

import csv
import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage
from transformers import ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustModel, __version__, files
from hf_mae_robust.__main__ import main
from hf_mae_robust.embedding import encoding
from hf_mae_robust.embedding.encoding import PartWriter, part_rows
from hf_mae_robust.embedding.table import EmbeddingFile
from hf_mae_robust.training import parts as parts_module
from tests.helpers import TINY, photos
from tests.processes import offline

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Three parts of 16, 16 and 8 images of photos_dir.
BY_ONE = ("--batch_size", 1)


def embed(model, folder, output, *more) -> dict[str, np.ndarray]:
    """The columns of the file that the command writes."""
    main([str(word) for word in words(model, folder, output, *more)])
    return columns(output)


def words(model, folder, output, *more) -> list:
    data = ["--dataset_name", folder, "--num_workers", 0, "--crop_pct", 1]
    return ["embed", model, *data, "--output", output, *more]


def columns(path) -> dict[str, np.ndarray]:
    frame = pq.read_table(path).to_pydict()
    return {name: np.array(values) for name, values in frame.items()}


def refusal(words: list, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def normalised(pictures) -> torch.Tensor:
    return torch.stack([torch.from_numpy((image / 255 - MEAN) / STD).permute(2, 0, 1).float() for image in pictures])


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory) -> Path:
    """A tiny stock ViT."""
    torch.manual_seed(1)
    names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(ViTConfig(**{name: TINY[name] for name in names}), add_pooling_layer=False).save_pretrained(folder)
    return folder


def stock_mae(folder: Path) -> ViTMAEModel:
    """transformers' own ViT-MAE, masking nothing, with the weights of our folder."""
    config = ViTMAEConfig(**{**json.loads((folder / "config.json").read_text()), "mask_ratio": 0.0})
    return ViTMAEModel.from_pretrained(folder, config=config)


@pytest.mark.parametrize("kind", ["mae", "vit"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "patches"])
def test_vectors_are_those_of_a_loop_with_transformers(kind, pooling, encoder_dir, vit_dir, photos_dir, tmp_path):
    model = stock_mae(encoder_dir) if kind == "mae" else ViTModel.from_pretrained(vit_dir, add_pooling_layer=False)
    expected = []
    for image in normalised(photos(40)):
        options = {"noise": torch.arange(16.0)[None]} if kind == "mae" else {}  # in their order
        with torch.no_grad():
            tokens = model.eval()(image[None], **options).last_hidden_state[0]
        expected.append({"cls": tokens[0], "mean": tokens[1:].mean(dim=0), "patches": tokens[1:]}[pooling].numpy())
    folder = encoder_dir if kind == "mae" else vit_dir
    found = embed(folder, photos_dir, tmp_path / "e.parquet", "--pooling", pooling)
    assert found["vector"].shape == ((40, 16, 32) if pooling == "patches" else (40, 32))
    np.testing.assert_allclose(found["vector"], np.stack(expected), atol=2e-6, rtol=1e-6)
    assert found["row"].tolist() == list(range(40)) and found["label"].tolist() == [row % 2 for row in range(40)]


def test_an_encoder_of_images_that_are_not_square(tmp_path):
    model = ViTMAERobustModel(ViTMAERobustConfig(**{**TINY, "image_size": [32, 16]})).eval()
    model.save_pretrained(tmp_path / "model")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), dtype=np.uint8)
    folder = tmp_path / "set"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        PILImage.fromarray(picture).save(folder / f"{number}.png")
    with torch.no_grad():
        expected = model(normalised(pictures)).last_hidden_state[:, 0]
    found = embed(tmp_path / "model", folder, tmp_path / "e.parquet")
    np.testing.assert_allclose(found["vector"], expected.numpy(), atol=2e-6, rtol=1e-6)


def test_float16_is_the_rounded_float32(encoder_dir, photos_dir, tmp_path):
    long = embed(encoder_dir, photos_dir, tmp_path / "a.parquet")["vector"]
    embed(encoder_dir, photos_dir, tmp_path / "b.parquet", "--dtype", "float16")
    short = load_dataset("parquet", data_files=str(tmp_path / "b.parquet"), split="train", cache_dir=tmp_path / "hf")
    assert short.features["vector"].feature.dtype == "float16"
    found = short.with_format("numpy", dtype=np.float16)["vector"][:]
    np.testing.assert_array_equal(found, long.astype(np.float16))


def test_numbers_that_float16_does_not_hold_are_refused(vit_dir, photos_dir, tmp_path, capsys):
    model = ViTModel.from_pretrained(vit_dir, add_pooling_layer=False)
    model.layernorm.weight.data *= 1e6
    model.save_pretrained(tmp_path / "large")
    error = refusal(words(tmp_path / "large", photos_dir, tmp_path / "e.parquet", "--dtype", "float16"), capsys)
    assert "--dtype float16 holds numbers up to 65,504" in error
    assert np.abs(embed(tmp_path / "large", photos_dir, tmp_path / "f.parquet")["vector"]).max() > 65504


def test_a_part_holds_little_of_all_vectors():
    assert part_rows((768,), 64) == 16 * 64 and part_rows((196, 768), 64) == 64
    assert part_rows((196, 768), 8) * 196 * 768 * 4 <= 32 * 2**20 and part_rows((196, 768), 8) % 8 == 0


def test_datasets_and_pandas_read_the_file(encoder_dir, photos_dir, tmp_path):
    found = embed(encoder_dir, photos_dir, tmp_path / "e.parquet", "--pooling", "mean")
    data = load_dataset("parquet", data_files=str(tmp_path / "e.parquet"), split="train", cache_dir=tmp_path / "hf")
    assert data.features["label"] == ClassLabel(names=["a", "b"])
    assert data.features["vector"].feature.dtype == "float32" and data.features["vector"].length == 32
    np.testing.assert_array_equal(data.with_format("numpy")["vector"][:], found["vector"])
    frame = pd.read_parquet(tmp_path / "e.parquet")
    np.testing.assert_array_equal(np.stack(frame["vector"]), found["vector"].astype(np.float32))
    assert frame["label"].tolist() == [row % 2 for row in range(40)] and frame["file_name"].isna().all()


@pytest.mark.skipif(find_spec("faiss") is None, reason="faiss-cpu is not installed")
def test_faiss_finds_each_image_itself(encoder_dir, photos_dir, tmp_path):
    found = embed(encoder_dir, photos_dir, tmp_path / "e.parquet")
    data = load_dataset("parquet", data_files=str(tmp_path / "e.parquet"), split="train", cache_dir=tmp_path / "hf")
    data.add_faiss_index("vector")
    scores, nearest = data.get_nearest_examples("vector", found["vector"][7].astype(np.float32), k=3)
    assert nearest["row"][0] == 7 and scores[0] == pytest.approx(0, abs=1e-5)


def test_the_file_says_where_it_comes_from(encoder_dir, photos_dir, tmp_path, capsys):
    embed(encoder_dir, photos_dir, tmp_path / "new" / "e.parquet", "--pooling", "mean")
    about = json.loads(pq.read_schema(tmp_path / "new" / "e.parquet").metadata[b"hf_mae_robust"])
    expected = {"checkpoint": str(encoder_dir), "pooling": "mean", "dtype": "float32", "version": __version__}
    expected |= {"dataset": str(photos_dir), "split": "train", "label_column": "label", "num_images": 40}
    assert expected.items() <= about.items() and len(about["fingerprint"]) == 16
    assert "40 images" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.parquet"]


def named_folder(folder: Path, bad=()) -> Path:
    """Twelve files of two classes; some hold no image."""
    for i, picture in enumerate(photos(12)):
        path = folder / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i in bad:
            path.write_bytes(b"no image")
        else:
            PILImage.fromarray(picture).save(path)
    return folder


def test_files_are_named_and_bad_ones_left_out_and_listed(encoder_dir, tmp_path, capsys):
    folder, output = named_folder(tmp_path / "set", bad=(4, 7)), tmp_path / "e.parquet"
    error = refusal(words(encoder_dir, folder, output, "--max_bad_images", 0.1), capsys)
    assert "2 of 12 images" in error and "--max_bad_images 0.1" in error and "cat/04.png" in error
    assert not output.exists()
    found = embed(encoder_dir, folder, output, "--max_bad_images", 0.2)
    order = [f"cat/{i:02d}.png" for i in (0, 2, 6, 8, 10)] + [f"dog/{i:02d}.png" for i in (1, 3, 5, 9, 11)]
    assert found["file_name"].tolist() == order and found["label"].tolist() == [0] * 5 + [1] * 5
    assert found["row"].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 10, 11]
    printed = capsys.readouterr().out
    assert "2 images cannot be decoded" in printed and "cat/04.png" in printed
    listed = [json.loads(line) for line in (tmp_path / "e.skipped_images.jsonl").read_text().splitlines()]
    assert [(record["row"], record["kind"]) for record in listed] == [(2, "not_an_image"), (9, "not_an_image")]
    images = [int(name[4:6]) for name in order]
    good = normalised([photos(12)[i] for i in images])
    with torch.no_grad():
        expected = ViTMAERobustModel.from_pretrained(encoder_dir, mask_ratio=0.0)(good).last_hidden_state[:, 0]
    np.testing.assert_allclose(found["vector"], expected.numpy(), atol=1e-5)


def test_a_repaired_image_gets_a_vector(encoder_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(encoding, "MAX_BATCHES", 4)
    folder, output = named_folder(tmp_path / "set"), tmp_path / "e.parquet"
    flags = (*BY_ONE, "--max_bad_images", 0.1)
    good = {name: (folder / name).read_bytes() for name in ("cat/02.png", "dog/11.png")}
    for name, content in good.items():
        (folder / name).write_bytes(bytes(len(content)))
    assert "2 of 12 images" in refusal(words(encoder_dir, folder, output, *flags), capsys)
    (folder / "cat/02.png").write_bytes(good["cat/02.png"])
    assert embed(encoder_dir, folder, output, *flags)["row"].tolist() == list(range(11))
    listed = (tmp_path / "e.skipped_images.jsonl").read_text()
    assert "dog/11.png" in listed and "cat/02.png" not in listed


def test_labels_may_be_missing_or_left_out(encoder_dir, photos_dir, tmp_path, capsys):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    labels = [0, 1, -1, None]
    Dataset.from_dict({"image": photos(4), "label": labels}, features).to_parquet(tmp_path / "some" / "train.parquet")
    assert embed(encoder_dir, tmp_path / "some", tmp_path / "a.parquet")["label"].tolist() == [0, 1, -1, -1]
    assert "label" not in embed(encoder_dir, photos_dir, tmp_path / "b.parquet", "--label_column_name", "none")
    Dataset.from_dict({"image": photos(4)}, Features({"image": Image()})).to_parquet(tmp_path / "no" / "train.parquet")
    assert "label" not in embed(encoder_dir, tmp_path / "no", tmp_path / "c.parquet")
    assert "Without labels" in capsys.readouterr().out
    error = refusal(words(encoder_dir, photos_dir, tmp_path / "d.parquet", "--label_column_name", "kind"), capsys)
    assert "no column 'kind'" in error


def test_a_sample_keeps_the_row_numbers_of_the_split(encoder_dir, photos_dir, tmp_path):
    every = embed(encoder_dir, photos_dir, tmp_path / "a.parquet")
    some = embed(encoder_dir, photos_dir, tmp_path / "b.parquet", "--max_samples", 9)
    assert len(some["row"]) == 9 and some["row"].tolist() == sorted(set(some["row"].tolist())) != list(range(9))
    np.testing.assert_allclose(some["vector"], every["vector"][some["row"]], atol=1e-5)
    assert some["label"].tolist() == [row % 2 for row in some["row"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_that_cannot_seek_give_the_same_file(encoder_dir, tmp_path, workers, capsys):
    folder, outputs = named_folder(tmp_path / "set", bad=(4,)), [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    flags = ["--max_bad_images", 0.1, "--batch_size", 2]
    embed(encoder_dir, folder, outputs[0], *flags)
    main(
        [str(w) for w in [*words(encoder_dir, folder, outputs[1], *flags), "--dataset_streaming"]]
        + [f"--num_workers={workers}"]
    )
    first, second = (columns(output) for output in outputs)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    more = ["--dataset_streaming", "--max_samples", 3]
    assert "cannot seek" in refusal(words(encoder_dir, folder, tmp_path / "c.parquet", *more), capsys)


def test_a_stream_whose_files_changed_is_refused(encoder_dir, tmp_path, monkeypatch, capsys):
    """What the command itself writes among them does not count."""
    monkeypatch.setattr(encoding, "MAX_BATCHES", 4)
    folder = named_folder(tmp_path / "set")
    output = folder / "e.parquet"
    line = [*words(encoder_dir, folder, output, *BY_ONE), "--dataset_streaming"]
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            main([str(word) for word in line])
    first = folder / "cat" / "0.png"
    shutil.copy(folder / "dog" / "11.png", first)
    assert "the files of the stream (--dataset_name) changed" in refusal(line, capsys)
    first.unlink()
    for _ in range(2):
        main([str(word) for word in line])
        assert len(columns(output)["row"]) == 12
    shutil.copy(folder / "dog" / "11.png", first)
    assert "exists and is of other settings: the files of the stream" in refusal(line, capsys)


def test_a_band_model_takes_its_bands(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 30_000, (6, 5, 16, 16)).astype(np.uint16)
    images[0, :, 4:8, 4:8] = 0
    data = Dataset.from_dict({"image": list(images)}, Features({"image": Array3D((5, 16, 16), "uint16")}))
    data.to_parquet(tmp_path / "set" / "train.parquet")
    mean, std = [14_000.0, 15_000.0, 16_000.0], [8000.0, 9000.0, 10_000.0]
    bands = {"bands": [4, 0, 2], "nodata": 0.0, "rescale_factor": 1.0, "image_mean": mean, "image_std": std}
    config = ViTMAERobustConfig(**TINY, num_channels=3, **bands)
    ViTMAERobustModel(config).save_pretrained(tmp_path / "model")
    picture = tmp_path / "map.png"
    found = embed(tmp_path / "model", tmp_path / "set", tmp_path / "e.parquet", "--pooling", "mean", "--map", picture)
    chosen = images[:, [4, 0, 2]].astype(np.float64)
    pixels = (chosen - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    pixels = torch.from_numpy(np.where(chosen == 0, 0, pixels)).float()
    encoder = ViTMAERobustModel.from_pretrained(tmp_path / "model", mask_ratio=0.0).eval()
    with torch.no_grad():
        expected = encoder(pixels).last_hidden_state[:, 1:].mean(dim=1)
    np.testing.assert_allclose(found["vector"], expected.numpy(), atol=1e-5)
    assert PILImage.open(picture).size[0] > 500


def test_files_whose_bands_lie_elsewhere(bands_dir, band_encoder_dir, tmp_path, capsys):
    expected = embed(band_encoder_dir, bands_dir, tmp_path / "e.parquet")["vector"]
    images = load_dataset(str(bands_dir), split="train").with_format("numpy")["image"][:]
    images = np.stack(images)[:, [2, 3, 4, 0, 1]]
    data = Dataset.from_dict({"image": list(images)}, Features({"image": Array3D(images.shape[1:], str(images.dtype))}))
    data.to_parquet(tmp_path / "set" / "train.parquet")
    output = tmp_path / "moved.parquet"
    chosen = ["--bands", 3, 4, 0, 1, 2]
    found = embed(band_encoder_dir, tmp_path / "set", output, *chosen)["vector"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "where the bands are" in refusal(words(band_encoder_dir, tmp_path / "set", output), capsys)
    two = words(band_encoder_dir, tmp_path / "set", tmp_path / "f.parquet", "--bands", 0, 1)
    assert "takes 5 bands, not 2" in refusal(two, capsys)


class Killed(BaseException):
    pass


def killed_after(number: int, monkeypatch) -> None:
    """The process ends while it writes part `number`, which stays in part under its temporary name."""
    flush, seen = files.flush, []

    def flush_and_die(path):
        if path.name.startswith(".part-"):
            seen.append(path)
            if len(seen) > number:
                path.write_bytes(path.read_bytes()[:-50])
                raise Killed
        flush(path)

    monkeypatch.setattr(files, "flush", flush_and_die)


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_killed_and_resumed_is_the_same_file(finished, encoder_dir, photos_dir, tmp_path, monkeypatch, capsys):
    embed(encoder_dir, photos_dir, tmp_path / "a.parquet", *BY_ONE)
    output = tmp_path / "b.parquet"
    with monkeypatch.context() as patch:
        killed_after(finished, patch)
        with pytest.raises(Killed):
            embed(encoder_dir, photos_dir, output, *BY_ONE)
    folder = tmp_path / "b.parquet.parts"
    assert (
        not output.exists() and len(list(folder.glob("part-*"))) == finished and len(list(folder.glob(".part*"))) == 1
    )
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    capsys.readouterr()
    with monkeypatch.context() as patch:  # finished parts are neither written nor embedded again
        written = []
        write = parts_module.Parts.write
        patch.setattr(
            parts_module.Parts, "write", lambda self, part, table: [written.append(part), write(self, part, table)]
        )
        embed(encoder_dir, photos_dir, output, *BY_ONE)
    assert [part.number for part in written] == list(range(finished, 3)) and len(before) == finished
    assert ("resuming" in capsys.readouterr().out) == (finished > 0)
    assert output.read_bytes() == (tmp_path / "a.parquet").read_bytes() and not folder.exists()


def test_of_pictures_that_changed_after_a_kill_it_is_said(encoder_dir, tmp_path, monkeypatch, capsys):
    folder, output = tmp_path / "pictures", tmp_path / "e.parquet"
    folder.mkdir()
    for i, picture in enumerate(photos(20)):
        PILImage.fromarray(picture).save(folder / f"{i:02d}.png")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(1, patch)
        embed(encoder_dir, folder, output, *BY_ONE)
    os.utime(folder / "03.png", (1, 1))
    embed(encoder_dir, folder, output, *BY_ONE)
    assert f"files of {folder} were written again since {output}.parts was made" in capsys.readouterr().out
    assert EmbeddingFile(output).about["files"] is None  # of which files each vector is, is not known


def test_a_torn_part_is_written_again(encoder_dir, photos_dir, tmp_path, monkeypatch):
    """As a disk may leave it that lied about what it holds."""
    embed(encoder_dir, photos_dir, tmp_path / "a.parquet", *BY_ONE)
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(Killed):
            embed(encoder_dir, photos_dir, tmp_path / "b.parquet", *BY_ONE)
    torn = tmp_path / "b.parquet.parts" / "part-000000.parquet"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    embed(encoder_dir, photos_dir, tmp_path / "b.parquet", *BY_ONE)
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_a_part_that_is_lost_before_all_are_joined(encoder_dir, photos_dir, tmp_path, monkeypatch, capsys):
    output, run = tmp_path / "b.parquet", PartWriter.run

    def run_and_lose(self):
        outcome = run(self)
        (tmp_path / "b.parquet.parts" / "part-000001.parquet").unlink()
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "run", run_and_lose)
        error = refusal(words(encoder_dir, photos_dir, output, *BY_ONE), capsys)
    assert f"{output}.parts lacks the images from row 16" in error and not output.exists()
    embed(encoder_dir, photos_dir, output, *BY_ONE)
    embed(encoder_dir, photos_dir, tmp_path / "a.parquet", *BY_ONE)
    assert output.read_bytes() == (tmp_path / "a.parquet").read_bytes()


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        (("--pooling", "mean"), "--pooling was cls and is mean now"),
        (("--dtype", "float16"), "--dtype was float32 and is float16 now"),
        (("--batch_size", 2), "--batch_size was 1 and is 2 now"),
        (("--crop_pct", 0.5), "the preprocessing (--crop_pct, or the checkpoint's image processor) changed"),
        (("--max_samples", 7), "the images or labels"),
    ],
)
def test_other_settings_are_refused(more, changed, encoder_dir, photos_dir, tmp_path, monkeypatch, capsys):
    """Beside parts, and beside a finished file."""
    output = tmp_path / "e.parquet"
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            embed(encoder_dir, photos_dir, output, *BY_ONE)
    error = refusal(words(encoder_dir, photos_dir, output, *BY_ONE, *more), capsys)
    assert f"{output}.parts holds parts of a run with other settings: {changed}" in error
    embed(encoder_dir, photos_dir, output, *BY_ONE)
    content = output.read_bytes()
    error = refusal(words(encoder_dir, photos_dir, output, *BY_ONE, *more), capsys)
    assert "exists and is of other settings" in error and changed in error and output.read_bytes() == content


def test_other_weights_are_refused(encoder_dir, vit_dir, photos_dir, tmp_path, capsys):
    embed(encoder_dir, photos_dir, tmp_path / "e.parquet")
    assert "the weights of the checkpoint changed" in refusal(
        words(vit_dir, photos_dir, tmp_path / "e.parquet"), capsys
    )


def test_a_finished_file_is_kept_and_used(encoder_dir, photos_dir, tmp_path, capsys):
    output = tmp_path / "e.parquet"
    embed(encoder_dir, photos_dir, output)
    before = output.stat().st_mtime_ns
    embed(encoder_dir, photos_dir, output, "--near_duplicates", 0.5, "--max_pairs", 10)
    assert output.stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "Only the 10 most similar pairs are listed (--max_pairs)" in printed
    with (tmp_path / "e.near_duplicates.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 10


def test_of_changed_pictures_it_is_said_that_the_vectors_are_of_the_former_ones(
    encoder_dir, tmp_path, monkeypatch, capsys
):
    folder, output = tmp_path / "pictures", tmp_path / "e.parquet"
    folder.mkdir()
    for i, picture in enumerate(photos(4)):
        PILImage.fromarray(picture).save(folder / f"{i}.png")
    embed(encoder_dir, folder, output)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    embed(encoder_dir, "pictures", output)  # the same folder
    printed = capsys.readouterr().out
    assert "no image is embedded again" in printed and "were written again" not in printed
    os.utime(folder / "0.png", (1, 1))  # the fingerprint knows the sizes of some files
    embed(encoder_dir, folder, output)
    assert f"Note: files of {folder} were written again since {output} was made" in capsys.readouterr().out


def test_a_file_of_others_is_not_overwritten(encoder_dir, photos_dir, tmp_path, capsys):
    for name, content in (
        ("a.parquet", b"mine"),
        ("b.parquet", next(Path(photos_dir).rglob("*.parquet")).read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
        error = refusal(words(encoder_dir, photos_dir, tmp_path / name), capsys)
        assert "exists and was not written by this command" in error and (tmp_path / name).read_bytes() == content
    (tmp_path / "c.parquet.parts").mkdir()
    (tmp_path / "c.parquet.parts" / "mine").touch()
    assert "is not empty" in refusal(words(encoder_dir, photos_dir, tmp_path / "c.parquet"), capsys)


def test_a_kill_while_the_record_of_the_settings_is_written_loses_nothing(
    encoder_dir, photos_dir, tmp_path, monkeypatch
):
    def die(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", die)
        with pytest.raises(Killed):
            embed(encoder_dir, photos_dir, tmp_path / "e.parquet")
    assert [path.name[:15] for path in (tmp_path / "e.parquet.parts").iterdir()] == [".settings.json-"]
    assert len(embed(encoder_dir, photos_dir, tmp_path / "e.parquet")["row"]) == 40
    assert not (tmp_path / "e.parquet.parts").exists()


@pytest.mark.slow  # it waits
@pytest.mark.parametrize("command", ["embed", "statistics"])
def test_a_process_that_is_lost_is_named_by_the_others(encoder_dir, photos_dir, tmp_path, command):
    run = words(encoder_dir, photos_dir, tmp_path / "e.parquet", *BY_ONE)
    if command == "statistics":
        run = [command, "--dataset_name", photos_dir, "--image_size", 16, "--patch_size", 4]
        run += ["--num_workers", 0, "--output", tmp_path / "s.safetensors"]
    kill = "rank == 1 and os.kill(os.getpid(), 9)"
    fault = {"FAULT_AT": "hf_mae_robust.data.dataset._decoded", "FAULT": kill}
    ended = offline().run(["-m", "hf_mae_robust", *run], tmp_path / "printed", 2, **fault)
    assert ended.codes == [6, -9], ended.output
    assert "lost process 1 (" in ended.stderr and "--ddp_timeout" not in ended.stderr
    assert "Traceback" not in ended.stderr and "bug" not in ended.stderr


@pytest.mark.slow
def test_two_processes_and_a_kill_give_the_same_bytes(encoder_dir, photos_dir, tmp_path):
    run = ["-m", "hf_mae_robust", *words(encoder_dir, photos_dir, tmp_path / "a.parquet", *BY_ONE)]
    assert offline().run(run, tmp_path / "one").codes == [0]
    again = [tmp_path / "b.parquet" if word == tmp_path / "a.parquet" else word for word in run]
    both = offline().run(again, tmp_path / "two", processes=2)
    assert both.codes == [0, 0], both.output
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    killed = [tmp_path / "c.parquet" if word == tmp_path / "a.parquet" else word for word in run]
    parts = f"__import__('glob').glob({str(tmp_path / 'c.parquet.parts' / 'part-*')!r})"
    fault = {
        "FAULT_AT": "hf_mae_robust.files.flush",
        "FAULT": f"len({parts}) == 2 and os.kill(os.getpid(), 9)",
    }
    assert offline().run(killed, tmp_path / "three", **fault).codes == [-9]
    resumed = offline().run(killed, tmp_path / "four", processes=2)
    assert resumed.codes == [0, 0] and "resuming" in resumed.stdout, resumed.output
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_the_python_of_the_manual_runs(encoder_dir, photos_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    embed(encoder_dir, photos_dir, Path("outputs", "embeddings.parquet"))
    page = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text()
    blocks, scope = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL), {}
    assert sum("faiss" in block for block in blocks) == 1
    for block in blocks:
        if "faiss" not in block or find_spec("faiss") is not None:
            exec(block, scope)
    assert scope["vectors"].shape == (40, 32) and scope["names"] == ["a", "b"] and len(scope["frame"]) == 40
    assert scope["about"]["num_images"] == 40
