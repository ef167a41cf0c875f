"""python -m hf_mae_robust demo: its words, and the Space that it writes."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hf_mae_robust.__main__ import main
from hf_mae_robust.data.preprocessing import band_processor
from hf_mae_robust.demo.command import requirements, write_space
from hf_mae_robust.demo.inspector import load_inspector
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from tests.demo_models import save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "my-model")


@pytest.fixture
def installed():
    """The package and gradio; a Space needs to know their requirements and version."""
    for name in ("hf_mae_robust", "gradio"):
        try:
            version(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")


def message(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["demo", *map(str, words)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in lines and lines[-1].startswith("python -m hf_mae_robust demo: error: ")
    return lines[-1]


def test_without_gradio_the_message_says_how_to_install_it(folder, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install ".[demo]"' in message(capsys, folder)
    assert "demo = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no/such/folder"], "no/such/folder"),
        (["nobody/no-such-model"], "nobody/no-such-model"),
        (["{model}", "--revision", "v1"], "is not a model on the Hub"),
        (["{model}", "--device", "toaster"], "--device toaster"),
        (["{model}", "--space", "{model}"], "is not an empty folder"),
        (["{file}"], "not a PyTorch file"),
        (["{probe}"], "is a 'timm_wrapper' model"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_bad_input_ends_in_one_sentence(folder, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    (tmp_path / "file.pth").write_text("nothing")
    (tmp_path / "probe").mkdir()
    config = {"model_type": "timm_wrapper", "architecture": "vit_base_patch16_224", "num_classes": 2}
    (tmp_path / "probe" / "config.json").write_text(json.dumps(config | {"label_names": ["ant", "bee"]}))
    words = [word.format(model=folder, file=tmp_path / "file.pth", probe=tmp_path / "probe") for word in words]
    assert expected in message(capsys, *words)


def test_flags_of_the_server_reach_gradio(folder, monkeypatch):
    app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")
    found = {}
    monkeypatch.setattr(app.gr.Blocks, "launch", lambda self, **settings: found.update(settings))
    main(["demo", str(folder), "--share", "--server_name", "0.0.0.0", "--server_port", "1234", "--device", "cpu"])
    assert (found["share"], found["server_name"], found["server_port"]) == (True, "0.0.0.0", 1234)


def test_a_port_that_is_taken_ends_in_one_sentence(folder, monkeypatch, capsys):
    app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")

    def launch(self, **settings):
        raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr(app.gr.Blocks, "launch", launch)
    assert "cannot be served: Cannot find empty port" in message(capsys, folder)


def test_a_click_goes_to_the_patch_under_it_on_a_grid_that_is_no_square(tmp_path):
    app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")
    folder = save_model(tmp_path / "model", image_size=[48, 64], patch_size=[8, 16])
    demo = app.Demo(load_inspector(str(folder)))
    state = {
        "pixels": torch.zeros(3, 48, 64, dtype=torch.uint8),
        "mask": torch.zeros(6, 4, dtype=torch.bool),
        "seed": 0,
    }
    for x, y, row, column in ((0, 0, 0, 0), (447, 335, 5, 3), (448, 336, 5, 3), (112, 55, 0, 1), (111, 56, 1, 0)):
        clicked, picture, *_ = demo.click(state, SimpleNamespace(index=[x, y]))
        assert picture.size == (448, 336)
        assert clicked["mask"].nonzero().tolist() == [[row, column]] and not state["mask"].any()


def test_an_emptied_mask_ratio_is_waited_for(tmp_path, monkeypatch):
    app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")
    demo = app.Demo(load_inspector(str(save_model(tmp_path / "model"))))
    monkeypatch.setattr(app, "read_upload", lambda upload, inspector: torch.zeros(3, 64, 64, dtype=torch.uint8))
    state, *_, count = demo.open({"path": "image.png"}, None, None)[2:]
    assert count == "0 of 64 patches are masked." and not state["mask"].any()
    assert demo.draw(state, None, 0) == app.gr.skip()


def test_classes_of_the_same_name_are_told_apart(tmp_path):
    app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")
    names = {"id2label": {0: "crane", 1: "bee", 2: "crane"}, "label2id": {"crane": 2, "bee": 1}}
    demo = app.Demo(load_inspector(str(save_model(tmp_path / "model", "classifier", **names))))
    named = demo.named(torch.tensor([0.5, 0.125, 0.375]))
    assert named == {"crane": 0.5, "bee": 0.125, "crane (2)": 0.375}


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_a_space_names_its_sdk_and_what_it_needs(folder, tmp_path, installed, capsys):
    main(["demo", str(folder), "--space", str(tmp_path / "space")])
    assert "hf upload" in capsys.readouterr().out
    settings = front_matter(tmp_path / "space")
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and settings["title"] == "my-model"
    assert settings["sdk_version"] == version("gradio")
    # Quoted: YAML would read 3.10 as 3.1. The Hub's default may be too old for the package.
    lowest = SpecifierSet(re.search('requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1])
    assert isinstance(settings["python_version"], str) and lowest.contains(settings["python_version"])
    # The Hub refuses a card with other colours.
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {settings["colorFrom"], settings["colorTo"]} <= colours and len(settings["emoji"]) == 1
    needed = {Requirement(line).name for line in (tmp_path / "space" / "requirements.txt").read_text().splitlines()}
    text = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r'"([\w.-]+)[<>=]', text.split("\ndependencies = [")[1].split("]")[0])
    assert needed == {*declared, "gradio"}
    assert "license" not in settings  # nobody has given one
    names = {path.name for path in (tmp_path / "space" / "hf_mae_robust").iterdir()}
    assert {"demo", "hub", "model", "recipes"} <= names and "__pycache__" not in names


def test_a_space_of_a_band_model_has_what_reads_its_files_and_the_licence_of_the_run(tmp_path, installed):
    form = BandForm(image_mean=(4500.0,) * 5, image_std=(2500.0,) * 5)
    settings = {"num_channels": 5, "rescale_factor": 1.0, "image_mean": [4500.0] * 5, "image_std": [2500.0] * 5}
    folder = save_model(tmp_path / "model", **settings)
    band_processor(form, 64, 1.0).save_pretrained(folder)
    (folder / "run.json").write_text('{"about": {"license": "cc-by-4.0"}}')
    main(["demo", str(folder), "--space", str(tmp_path / "space")])
    assert front_matter(tmp_path / "space")["license"] == "cc-by-4.0"
    needed = {Requirement(line).name for line in (tmp_path / "space" / "requirements.txt").read_text().splitlines()}
    assert {"tifffile", "imagecodecs", "pydicom", "gradio"} <= needed


def test_a_model_of_the_hub_is_named_at_its_commit(folder, tmp_path, installed):
    write_space(tmp_path / "space", load_inspector(str(folder)), "me/model", "me/model", "0123abc")
    assert not (tmp_path / "space" / "checkpoint").exists()
    assert front_matter(tmp_path / "space")["models"] == ["me/model"]
    tree = ast.parse((tmp_path / "space" / "app.py").read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_inspector"
    )
    assert ast.literal_eval(call.args[0]) == "me/model"
    assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == {"revision": "0123abc"}


def test_a_space_runs_by_itself(folder, tmp_path, installed):
    """With the package that lies in it, and the model that went along, from any folder."""
    main(["demo", str(folder), "--space", str(tmp_path / "space")])
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); app = runpy.run_path(sys.argv[1] + '/app.py')['app']\n"
    code += "import hf_mae_robust; print(hf_mae_robust.__file__, app.title)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    environment.pop("PYTHONPATH", None)
    folder.rename(tmp_path / "elsewhere")
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "space")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    path, title = result.stdout.split(maxsplit=1)
    assert Path(path).parent == tmp_path / "space" / "hf_mae_robust" and title.startswith("my-model")


def test_requirements_are_known_where_the_package_is_installed_only(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hf_mae_robust.demo.command.distribution", absent)
    with pytest.raises(ValueError, match="pip install"):
        requirements()
