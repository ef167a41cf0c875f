"""`analyze`: the results of the command, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image
from transformers import ViTMAEConfig, ViTMAEModel

from hf_mae_robust.__main__ import main
from tests.helpers import TINY, photos


def test_the_command_writes_numbers_and_pictures(photos_dir, encoder_dir, tmp_path, capsys):
    words = [str(encoder_dir), "--dataset_name", str(photos_dir), "--max_samples", "20", "--batch_size", "8"]
    main(["analyze", "all", *words, "--crop_pct", "1.0", "--output_dir", str(tmp_path / "out")])
    content = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert content["images"] == 20 and len(content["values"]["loss_map"]) == 4
    printed = capsys.readouterr().out
    assert "| encoder 1 |" in printed and f"loss: {content['values']['loss']:.4f}" in printed
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"blocks.png", "loss_map.png", "cka.png"}
    main(["analyze", "cka", *words, "--other", str(encoder_dir), "--output_dir", str(tmp_path / "cka")])
    values = json.loads((tmp_path / "cka" / "analysis.json").read_text())["values"]
    assert values.keys() == {"cka"} and values["cka"][1][1] == pytest.approx(1)


def test_analyses_of_two_kinds_do_not_replace_one_another(photos_dir, encoder_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("features", "attention"):
        main(["analyze", kind, str(encoder_dir), "--dataset_name", str(photos_dir), "--max_samples", "4"])
    contents = {path.parent.name: json.loads(path.read_text()) for path in Path("analysis").glob("*/analysis.json")}
    assert "encoder 1/rank" in contents["features"]["values"] and "encoder 1/entropy" in contents["attention"]["values"]
    assert {content["dataset_name"] for content in contents.values()} == {str(photos_dir)} and len(contents) == 2
    assert not list(Path("analysis").rglob(".*"))


def test_pictures_of_a_former_analysis_do_not_stay_beside_the_new_numbers(photos_dir, encoder_dir, tmp_path, capsys):
    words = ["--dataset_name", str(photos_dir), "--max_samples", "4", "--output_dir", str(tmp_path / "out")]
    other = shutil.copytree(encoder_dir, tmp_path / "other")
    main(["analyze", "all", str(encoder_dir), *words])
    main(["analyze", "cka", str(other), *words])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"analysis.json", "cka.png"}
    assert f"held an analysis of {encoder_dir}, which is replaced" in capsys.readouterr().out


@pytest.mark.parametrize("names_class", [True, False])
def test_an_encoder_alone_has_neither_decoder_nor_loss(names_class, photos_dir, tmp_path, capsys):
    """A new decoder would be random: its numbers would mean nothing, and be others each time."""
    config = ViTMAEConfig(**{name: value for name, value in TINY.items() if hasattr(ViTMAEConfig(), name)})
    ViTMAEModel(config).save_pretrained(tmp_path / "encoder")
    if not names_class:
        file = tmp_path / "encoder" / "config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({name: value for name, value in settings.items() if name != "architectures"}))
    words = [str(tmp_path / "encoder"), "--dataset_name", str(photos_dir), "--max_samples", "4"]
    main(["analyze", "all", *words, "--output_dir", str(tmp_path / "out")])
    values = json.loads((tmp_path / "out" / "analysis.json").read_text())["values"]
    assert "encoder 1/rank" in values and "encoder 1/entropy" in values and "cka" in values
    assert not [name for name in values if name.startswith(("decoder", "loss"))]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["analyze", "loss_map", *words])
    assert "is an encoder without a decoder, and the map of the loss needs both" in capsys.readouterr().err


def write_broken(folder, bad):
    """12 photos, of which those in `bad` cannot be decoded."""
    features = Features({"image": Image()})
    encoded = Dataset.from_dict({"image": photos(12)}, features=features).cast_column("image", Image(decode=False))
    rows = [{"bytes": row["bytes"][: 80 if i in bad else None], "path": None} for i, row in enumerate(encoded["image"])]
    Dataset.from_dict({"image": rows}, features=features).to_parquet(folder / "train.parquet")
    return folder


def test_images_that_cannot_be_decoded_are_left_out_and_counted(encoder_dir, tmp_path, capsys):
    """A batch of such images alone, too."""
    words = ["analyze", "features", str(encoder_dir), "--batch_size", "1", "--output_dir", str(tmp_path / "out")]
    main([*words, "--dataset_name", str(write_broken(tmp_path / "some", {3, 7}))])
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["images"] == 10
    assert re.search(r"2 of 12 images cannot be decoded and were left out .* row \d+: ", capsys.readouterr().out)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--dataset_name", str(write_broken(tmp_path / "all", set(range(12))))])
    assert stopped.value.code == 2 and "can be decoded. The first: row" in capsys.readouterr().err


def test_places_that_were_never_masked_are_null(photos_dir, encoder_dir, tmp_path):
    words = ["--dataset_name", str(photos_dir), "--max_samples", "2", "--output_dir", str(tmp_path)]
    main(["analyze", "loss_map", str(encoder_dir), *words])

    def refuse(constant):
        raise ValueError(constant)  # JSON has no NaN

    content = json.loads((tmp_path / "analysis.json").read_text(), parse_constant=refuse)
    assert len(content["values"]["loss_map"]) == 4


def test_a_second_model_is_for_cka(photos_dir, encoder_dir, capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "loss_map", str(encoder_dir), "--dataset_name", str(photos_dir), "--other", str(encoder_dir)])
    assert "`analyze cka` and `analyze all` compare two models; `loss_map` does not" in capsys.readouterr().err


def test_models_without_a_decoder_are_refused(photos_dir, tmp_path, capsys):
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(SystemExit):
        main(["analyze", "features", str(tmp_path / "vit"), "--dataset_name", str(photos_dir)])
    assert "is a 'vit' model" in capsys.readouterr().err


def test_models_of_bands_see_them_as_in_the_training(bands_dir, band_encoder_dir, photos_dir, tmp_path, capsys):
    words = [str(band_encoder_dir), "--max_samples", "8", "--crop_pct", "1.0", "--output_dir", str(tmp_path / "out")]
    main(["analyze", "all", *words, "--dataset_name", str(bands_dir), "--other", str(band_encoder_dir)])
    values = json.loads((tmp_path / "out" / "analysis.json").read_text())["values"]
    assert 0.5 < values["loss"] < 3  # of numbers around a thousand it would be others
    for more, message in (
        (["--dataset_name", str(photos_dir)], "holds|bands"),
        (["--dataset_name", str(bands_dir), "--bands", "0", "1"], "--bands 0 1: .* takes 5 bands, not 2"),
    ):
        with pytest.raises(SystemExit):
            main(["analyze", "features", *words, *more])
        assert re.search(message, capsys.readouterr().err)


def test_targets_of_a_checkpoint_of_bands(bands_dir, band_encoder_dir, tmp_path):
    words = ["--model_name_or_path", str(band_encoder_dir), "--dataset_name", str(bands_dir), "--max_samples", "8"]
    main(["analyze", "targets", *words, "--num_workers", "0", "--output", str(tmp_path / "targets.json")])
    first = (tmp_path / "targets.json").read_text()
    assert json.loads(first)["about"]
    main(["analyze", "targets", *words, "--num_workers", "0", "--output", str(tmp_path / "targets.json")])
    assert (tmp_path / "targets.json").read_text() == first
