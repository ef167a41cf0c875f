"""Model cards (`README.md`), as the Hub reads them.

Of a folder that a run has written, from what its files say; and of a recipe that nobody has run yet, with the paper's
figures as the paper's.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ..errors import UserError, refused_by_library
from ..paper import PAPER_RESULTS
from ..recipes import recipe_path
from .before_after import before_and_after
from .run_record import in_millions
from .unused_settings import without_effect

TEMPLATE = Path(__file__).with_name("model_card_template.md")
CARD = "README.md"
PROCESSOR = "preprocessor_config.json"
# Of the table of bands: a hyperspectral model has hundreds.
MAX_ROWS = 32
PRETRAINING = "pre-training"
PIPELINES = {
    PRETRAINING: "image-feature-extraction",
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
TOP5 = "Top-5"
# Result key, type of the metric on the Hub, name.
METRICS = {
    PRETRAINING: (("eval_loss", "loss", "Reconstruction loss"),),
    "classification": (("eval_accuracy", "accuracy", "Top-1"), ("eval_top5_accuracy", "accuracy", TOP5)),
    "segmentation": (("eval_mean_iou", "mean_iou", "Mean IoU"), ("eval_mean_accuracy", "accuracy", "Mean accuracy")),
    "detection": (
        ("eval_box_ap", "mAP", "Box AP"),
        ("eval_box_ap50", "mAP", "Box AP50"),
        ("eval_mask_ap", "mAP", "Mask AP"),
        ("eval_mask_ap50", "mAP", "Mask AP50"),
    ),
}
PICTURES = {
    "reconstructions.png": "Held-out images: original, masked, reconstruction",
    "reconstruction_error_by_band.png": "Mean squared error of the reconstruction by band, relative to the variance of "
    "the band",
    "loss.png": "Loss and results during the training",
    "confusion_matrix.png": "Confusion matrix",
    "classes.png": "Results of each class",
    "predictions.png": "Predictions",
}
EXAMPLES = ("example_1.png", "example_2.png")
# Pillow's modes of 8-bit images by their channels, where it is not RGB.
MODES = {1: "L", 4: "RGBA"}

_LOAD = """\
from transformers import AutoImageProcessor, {auto}
from transformers.image_utils import load_image

processor = AutoImageProcessor.from_pretrained("{model}"{processor_trust})
model = {auto}.from_pretrained("{model}"{trust})
inputs = processor({image}, return_tensors="pt")
"""
_LOAD_BANDS = """\
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained("{model}", trust_remote_code=True)
model = {auto}.from_pretrained("{model}"{trust})
inputs = processor("{path}", return_tensors="pt")  # or an array, or a list of them
"""
_PIPELINE = """\
from transformers import pipeline

run = pipeline("{pipeline}", "{model}"{trust})
print(run({path}))
"""
_AUTO_CLASSES = {
    PRETRAINING: "AutoModel",
    "classification": "AutoModelForImageClassification",
    "segmentation": "AutoModelForSemanticSegmentation",
    "detection": "AutoModelForObjectDetection",
}
_LAST_LINES = {
    PRETRAINING: "features = model(**inputs).last_hidden_state  # (1, 1 + patches, width); the first is CLS",
    "classification": "print(model.config.id2label[int(model(**inputs).logits.argmax())])",
    "segmentation": "classes = processor.post_process_semantic_segmentation(model(**inputs))",
    "detection": "objects = processor.post_process_object_detection(model(**inputs))",
}
# Of --freeze_encoder: no stock class holds the head.
_LINEAR_HEAD = """\
head = load_file({path})
tokens = model(**inputs).last_hidden_state[:, 1:]  # (1, patches, width)
logits = (tokens @ head["weight"].T + head["bias"]).transpose(1, 2)
logits = logits.unflatten(2, (int(logits.shape[2] ** 0.5), -1))  # (1, classes, rows, columns)
size = inputs["pixel_values"].shape[-2:]
classes = nn.functional.interpolate(logits, size=size, mode="bilinear").argmax(1)[0]  # (height, width)"""
_FROZEN_NOTE = (
    "A frozen encoder, which is a stock `BeitModel`, and the linear layer on its patch tokens in "
    "`linear_head.safetensors`; no class of transformers holds both, so pipelines do not run it. `config.id2label` "
    "names the classes"
)
_OF_BANDS = (
    "The model takes images of the same bands, in the same order and units, as those that it was trained on; another "
    "sensor, or another scaling of its numbers, gives features without meaning and no error. Pipelines and the widgets "
    "of the Hub cannot run it."
)
_OF_OTHER_MODES = (
    "Pipelines and the widgets of the Hub make three channels of every image, which is not what the model takes; they "
    "cannot run it."
)
_LIMITATIONS = {
    PRETRAINING: (
        "The features are what filling in masked patches teaches; for most uses the encoder has to be fine-tuned. What "
        "the decoder fills in is plausible, not true: it is not a restoration. Losses of different targets cannot be "
        "compared, and a lower one does not mean better features."
    ),
    "classification": "The model knows these classes only, and names one of them for every image.",
    "segmentation": "The model knows these classes only. The pipeline squeezes an image into one window; the "
    "evaluation in the training slides windows over it.",
    "detection": "The model knows these classes only, and returns at most `detections_per_image` objects of an image.",
}
_ALL_LIMITATIONS = (
    "It has learnt from the images named above, with their gaps and biases, and was tested on the split named above "
    "only. How it does on other cameras, places or people was not measured."
)
_ALL_LICENCES = (
    "The code beside them is hf_mae_robust's: Apache-2.0. The images they were trained on have terms of their own."
)
_OWN_LICENCE = "The weights: {name}, as whoever trained them says."
_NO_LICENCE = "Whoever trained the weights names no licence for them (`--model_license` of hf_mae_robust does)."


def save_card(folder: str | Path, model_id: str | None = None, path: str | Path | None = None) -> None:
    """Write `README.md` into a folder that run_pretrain.py or run_finetune.py has written. One that is there is
    replaced completely.

    Args:
        model_id: of the Hub, "user/name"; None: users name the model by its folder.
        path: where the folder will lie, if elsewhere than now.

    Raises ValueError where the folder does not say what was run.
    """
    folder = Path(folder)
    staged = folder / f"{CARD}.part"
    staged.write_text(card_of_run(folder, model_id, path), encoding="utf-8")
    staged.replace(folder / CARD)


def card_of_run(folder: Path, model_id: str | None = None, path: str | Path | None = None) -> str:
    """The card's text; see `save_card`."""
    about, run = _read_run(folder)
    config = _read_json(folder / "config.json")
    history = _log_history(folder)
    results = {key: value for entry in history for key, value in entry.items() if key.startswith("eval_")}
    if (folder / "all_results.json").exists():
        results |= _read_json(folder / "all_results.json")
    captions = PICTURES
    if about["evaluated_on"] is None:  # results that are there are of another run
        results = {key: value for key, value in results.items() if not key.startswith("eval_")}
        captions = {
            name: caption.replace("Held-out images", "Images of the training") for name, caption in PICTURES.items()
        }
    path = Path(path or folder)
    task, licence, name = about["task"], about["license"], model_id or path.resolve().name
    # As `portable`: other paths say nothing on another machine.
    model = model_id or (name if path.is_absolute() or ".." in path.parts else path.as_posix())
    mode, is_of_bands = MODES.get(_encoder(config).get("num_channels", 3)), _is_of_bands(folder)
    measured = [(label, kind, results[key]) for key, kind, label in METRICS[task] if key in results]
    examples = [example for example in EXAMPLES if (folder / example).exists()]
    # Widgets make three channels of every image.
    widget = [{"src": example, "example_title": example} for example in examples if mode is None]
    if len(config.get("id2label") or config.get("label_names") or ()) <= 5:  # of which the first five are all
        measured = [entry for entry in measured if entry[0] != TOP5]
    # The Hub's word for what runs a model, too, and there it would fail.
    runs_in_pipelines = mode is None and not is_of_bands
    card_data = ModelCardData(
        model_name=name.rpartition("/")[2],
        **_metadata(
            # With --freeze_encoder an encoder, as far as the Hub can run it.
            PIPELINES[PRETRAINING if run.get("freeze_encoder") else task] if runs_in_pipelines else None,
            licence,
            about["start"] if about["start_commit"] else None,
        ),
        datasets=[about["dataset"]] if about["is_dataset_on_hub"] else None,
        widget=widget or None,
        eval_results=[
            EvalResult(
                task_type=PIPELINES[task],
                dataset_type=about["dataset"],
                dataset_name=about["dataset"],
                dataset_split=_evaluated_split(about),
                dataset_revision=run.get("dataset_revision"),
                metric_type=kind,
                metric_name=label,
                metric_value=value,
            )
            for label, kind, value in measured
        ]
        or None,
    )
    figures = [(label, f"{value:.4f}") for label, _, value in measured]
    if task == PRETRAINING and "eval_loss_of_mean" in results:
        figures.append(("The same for predicting the mean", f"{results['eval_loss_of_mean']:.4f}"))
    example = examples[0] if examples else None
    needs_timm = "TimmWrapperForImageClassification" in (config.get("architectures") or ())
    use_note = _use_note_of_bands(task, needs_timm) if is_of_bands else _use_note(task, needs_timm)
    code = _code_of_bands(task, model) if is_of_bands else _code(task, model, example, model_id, mode)
    if run.get("freeze_encoder"):
        trust = ". `trust_remote_code=True` runs the code of the image processor, which lies beside the weights"
        use_note = f"{_FROZEN_NOTE}{trust if is_of_bands else ''}:"
        code = _code_of_linear_head(model, example, model_id, is_of_bands, mode)
    return _render(
        card_data,
        title=name.rpartition("/")[2],
        summary=_summary(about, run, config),
        figures=figures,
        figures_title=f"{about['evaluated_on']}: {about['num_evaluated'] or 0:,} images",
        note="Measured at the end of the training by the same program.",
        before_after=None if task != PRETRAINING or about["start"] is None else before_and_after(history),
        use_note=use_note,
        code=code,
        bands=_bands(_read_json(folder / PROCESSOR)) if is_of_bands else None,
        pictures=[(picture, caption) for picture, caption in captions.items() if (folder / picture).exists()],
        training=_training(about, run, results, history, folder),
        settings=_settings(run, config),
        software=", ".join(f"{package} {number}" for package, number in about["software"].items()),
        limitations=_limitations(task, is_of_bands, bool(run.get("freeze_encoder")), mode),
        licence=f"{_OWN_LICENCE.format(name=licence) if licence else _NO_LICENCE} {_ALL_LICENCES}",
    )


def card_of_recipe(name: str) -> str:
    """The card of a row of the paper's tables: how to train it, and what the paper got.

    Raises ValueError for a recipe that is not a row of the paper; FileNotFoundError for none.
    """
    if Path(name).stem not in PAPER_RESULTS:
        raise UserError(
            f"{name} is neither the folder of a run nor a recipe of the paper's tables; those are "
            f"{', '.join(sorted(PAPER_RESULTS))}."
        )
    path = recipe_path(name)
    paper = PAPER_RESULTS[path.stem]
    text = path.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    task = recipe.get("task", PRETRAINING)
    comment = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    command = "\n".join(line.removeprefix("   ") for line in comment if line.startswith("   "))
    flat = {key: value for key, value in recipe.items() if key not in ("config_overrides", "output_dir", "task")}
    overrides = recipe.get("config_overrides") or {}
    config = {"image_size": recipe.get("image_size", 224), **(overrides if isinstance(overrides, dict) else {})}
    return _render(
        ModelCardData(**_metadata(PIPELINES[task], "apache-2.0", None)),
        title=path.stem,
        summary=(
            f"**A recipe: no weights were trained with it here.** {paper.what}, as `--config {path.stem}` of "
            "hf_mae_robust trains it."
        ),
        figures=paper.figures,
        figures_title=f"The paper's figures ({paper.table})",
        note=f"These are the paper's, {paper.source}. They were not reproduced here.",
        use_note=f"When you have trained it, with `--output_dir {recipe['output_dir']}`:",
        code=_code(task, recipe["output_dir"], EXAMPLES[0], None, mode=None),
        pictures=(),
        training="The command:",
        command=command,
        settings=list({**flat, **config}.items()),
        software=None,
        limitations=f"{_LIMITATIONS[task]} Nothing is known yet about weights trained this way with this package.",
        licence="The recipe: Apache-2.0. Weights that you train are yours, within the terms of your images.",
    )


def _render(card_data: ModelCardData, **parts: Any) -> str:
    return str(ModelCard.from_template(card_data, template_path=str(TEMPLATE), **parts)).rstrip() + "\n"


def _metadata(pipeline: str | None, model_license: str | None, base_model: str | None) -> dict[str, Any]:
    return {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "license": model_license,
        "base_model": base_model,
        "tags": ["hf_mae_robust", "masked-autoencoder", "vision"],
    }


def _read_json(path: Path) -> dict[str, Any]:
    """An object. Raises UserError."""
    with refused_by_library(f"{path} cannot be used for a card"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError(f"{path} cannot be used for a card: it holds no settings.")
        return content


def _read_run(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(what it was, its settings)"""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
        return run.pop("about"), run
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no run.json: cards are written for what run_pretrain.py and run_finetune.py have trained."
        ) from None
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} does not say what was run ({type(error).__name__}: {error}).") from error


def _evaluated_split(about: Mapping[str, Any]) -> str:
    """Such as "test". Older run.json files have it in the description only: "first 8 of digits (test)"."""
    return about.get("split") or (about["evaluated_on"] or "").rpartition("(")[2].rstrip(")")


def _log_history(folder: Path) -> Sequence[Mapping[str, Any]]:
    path = folder / "trainer_state.json"
    return _read_json(path).get("log_history", ()) if path.exists() else ()


def _encoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("backbone_config") or config


def _by(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, (list, tuple)) else f"{size} x {size}"


def _summary(about: Mapping[str, Any], run: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    encoder, images = _encoder(config), f"{run['num_images']:,} images" if run.get("num_images") else "the images"
    what = (
        f"A Vision Transformer ({encoder['num_hidden_layers']} blocks of width {encoder['hidden_size']}, patches of "
        f"{_by(encoder['patch_size'])} pixels, images of {_by(config.get('image_size', encoder['image_size']))}; "
        f"{in_millions(about['num_parameters'])} parameters in all)"
    )
    link = f"[{about['dataset']}](https://huggingface.co/datasets/{about['dataset']})"
    commit = f" at commit {about['start_commit'][:10]}" if about["start_commit"] else ""
    data = f"{images} of {link if about['is_dataset_on_hub'] else about['dataset']}"
    if about["task"] != PRETRAINING:
        start = "from scratch" if about["start"] is None else f"from {about['start']}{commit}"
        return f"{what}, fine-tuned {start} for {about['task']} on {data}."
    start = "" if about["start"] is None else f", starting from {about['start']}{commit},"
    ingredients = [f"decoder attention dropout {config['decoder_attention_probs_dropout_prob']:g}"]
    normalised = " and per patch" if config["norm_pix_loss"] else ""
    ingredients.append(f"target normalised `{config['target_normalization']}`{normalised}")
    if config["mid_mask_ratio"]:
        ingredients.append(
            f"{config['mid_mask_ratio']:.0%} mid-level mask tokens from block {config['mid_mask_layer_idx']}"
        )
    if (kept := config.get("decoder_keep_ratio", 1)) < 1:  # config.json names it only then
        ingredients.append(f"a random {kept:.0%} of the masked patches reconstructed in each training step")
    return (
        f"{what}, pre-trained{start} as a masked autoencoder on {data}, without labels: {config['mask_ratio']:.0%} of "
        f"the patches masked, {', '.join(ingredients)}."
    )


def _limitations(task: str, is_of_bands: bool, is_frozen: bool, mode: str | None) -> str:
    """mode: as of `_code`."""
    of_bands = f"{_OF_BANDS} " if is_of_bands else f"{_OF_OTHER_MODES} " if mode else ""
    if is_frozen:
        return (
            "The linear layer shows what the frozen features hold; a fine-tuned model segments better. It knows these "
            f"classes only. {of_bands}{_ALL_LIMITATIONS}"
        )
    of_task = _LIMITATIONS[task].replace("The pipeline", "The image processor") if of_bands else _LIMITATIONS[task]
    return f"{of_task} {of_bands}{_ALL_LIMITATIONS}"


def _is_of_bands(folder: Path) -> bool:
    """Whether the images of a model are not 8-bit pictures, by its image processor."""
    path = folder / PROCESSOR
    return path.exists() and _read_json(path).get("image_processor_type") == "ViTMAERobustImageProcessor"


def _bands(processor: Mapping[str, Any]) -> dict[str, Any]:
    """What images must hold, by the settings of their image processor: sentences, and a row for each channel where
    there are few."""
    mean, std = processor.get("image_mean") or [], processor.get("image_std") or []
    bands, limits, nodata = (processor.get(name) for name in ("bands", "value_range", "nodata"))
    several, them = ("", "it") if len(mean) == 1 else ("s", "them")
    takes = f"takes {len(mean)} band{several}{' of those in a file' if bands else ''}" if mean else "takes all bands"
    clips = f", clips {them}" if limits else ""
    statistics = f": mean{several} {_span(mean)}, standard deviation{several} {_span(std)}" if mean else ""
    normalises = f" and normalises {them}{statistics}, in the units of the files" if mean else ""
    sentences = [f"The image processor {takes}{clips}{normalises}"]
    number = "" if nodata is None else f", and the number {nodata:g}"
    sentences.append(f"Missing pixels (NaN, what the file marks itself{number}) get the mean of their band")
    if len(mean) > MAX_ROWS:
        sentences.append(f"`{PROCESSOR}` has the numbers of each band")
    rows = [
        [
            channel,
            bands[channel] if bands else channel,
            *(f"{values[channel]:.6g}" for values in (mean, std)),
            *([f"{limits[channel][0]:g} to {limits[channel][1]:g}"] if limits else []),
        ]
        for channel in range(len(mean))
    ]
    return {
        "sentence": f"{'. '.join(sentences)}.",
        "rows": rows if len(rows) <= MAX_ROWS else [],
        "is_clipped": bool(limits),
    }


def _span(numbers: Sequence[float]) -> str:
    low, high = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
    return low if low == high else f"{low} to {high}"


def _use_note_of_bands(task: str, needs_timm: bool) -> str:
    timm = ", timm" if needs_timm else ""
    return (
        f"Only transformers{timm} and torchvision are needed, and for TIFF files tifffile and imagecodecs, for DICOM "
        "pydicom. `trust_remote_code=True` runs the code that lies beside the weights: the image processor, which "
        "chooses the bands, fills missing pixels and normalises as in the training"
        + (", and the model. Nothing is masked:" if task == PRETRAINING else ". The model is a stock one:")
    )


def _use_note(task: str, needs_timm: bool) -> str:
    if task == PRETRAINING:
        return (
            "Only transformers is needed; `trust_remote_code=True` runs the model's code, which lies beside the "
            "weights. Nothing is masked, and the features are the same every time:"
        )
    if task == "detection":
        return (
            "Only transformers and torchvision are needed; `trust_remote_code=True` runs the model's code, which lies "
            "beside the weights:"
        )
    return f"A stock model: only transformers {'and timm are' if needs_timm else 'is'} needed."


def _code(task: str, model: str, example: str | None, model_id: str | None, mode: str | None) -> str:
    """mode: of Pillow, that images must have; None: RGB."""
    trust = ", trust_remote_code=True" if task in (PRETRAINING, "detection") else ""
    imports, path = "", f'"{model}/{example}"' if example else '"image.jpg"'
    if example and model_id:  # on the Hub
        path, imports = f'hf_hub_download("{model_id}", "{example}")', "from huggingface_hub import hf_hub_download\n"
    if task != PRETRAINING and mode is None:
        return (imports + _PIPELINE.format(pipeline=PIPELINES[task], model=model, trust=trust, path=path)).rstrip()
    auto = _AUTO_CLASSES[task]
    # Pipelines and load_image make three channels of every image.
    image = f'Image.open({path}).convert("{mode}")' if mode else f"load_image({path})"
    processor_trust = trust if task == "detection" else ""
    code = imports + _LOAD.format(auto=auto, model=model, processor_trust=processor_trust, trust=trust, image=image)
    if mode:
        code = code.replace("from transformers.image_utils import load_image", "from PIL import Image")
    return code + _LAST_LINES[task]


def _code_of_bands(task: str, model: str) -> str:
    trust = ", trust_remote_code=True" if task == PRETRAINING else ""
    return _LOAD_BANDS.format(auto=_AUTO_CLASSES[task], model=model, trust=trust, path="image.tif") + _LAST_LINES[task]


def _code_of_linear_head(
    model: str, example: str | None, model_id: str | None, is_of_bands: bool, mode: str | None
) -> str:
    """How to use what --freeze_encoder has trained."""
    load = _code(PRETRAINING, model, example, model_id, mode).removesuffix(_LAST_LINES[PRETRAINING])
    if is_of_bands:
        load = _code_of_bands(PRETRAINING, model).removesuffix(_LAST_LINES[PRETRAINING])
    load = load.replace(
        f'AutoModel.from_pretrained("{model}", trust_remote_code=True)', f'AutoModel.from_pretrained("{model}")'
    )
    file, imports = "linear_head.safetensors", "from safetensors.torch import load_file\nfrom torch import nn\n"
    if model_id and "hf_hub_download" not in load:
        imports = f"from huggingface_hub import hf_hub_download\n{imports}"
    path = f'hf_hub_download("{model_id}", "{file}")' if model_id else f'"{model}/{file}"'
    return imports + load + _LINEAR_HEAD.format(path=path)


def _training(
    about: Mapping[str, Any],
    run: Mapping[str, Any],
    results: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    folder: Path,
) -> str:
    recipe = f"Recipe `--config {about['recipe']}`" if about["recipe"] else "No recipe"
    sentences = [f"{recipe} of hf_mae_robust, on {about['hardware']}"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if losses:
        steps = history[-1]["step"]
        sentences.append(f"{steps:,} steps; the training loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
    if rates := [entry["images_per_second"] for entry in history if "images_per_second" in entry]:
        sentences.append(f"{median(rates):,.0f} images/s (median)")
    if "train_runtime" in results:
        sentences.append(f"{_duration(results['train_runtime'])} since it was last started")
    if energy := _energy(results):
        sentences.append(energy)
    if run.get("dataset_revision"):
        sentences.append(f"Data at commit {run['dataset_revision']}")
    statistics = folder / "target_statistics.safetensors"
    if statistics.exists():
        with safe_open(statistics, "pt") as file:
            count = (file.metadata() or {}).get("num_images")
        of = f" of {int(count):,} images" if count else ""
        sentences.append(f"The target's population statistics{of} are in `{statistics.name}`")
    return ". ".join(sentences) + "."


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _energy(results: Mapping[str, Any]) -> str | None:
    """As training/energy.py has counted it; None where nothing did."""
    parts = [
        f"{results[key]:.3g} kWh by {what}"
        for key, what in (
            ("train_gpu_kwh", "the GPUs (NVML)"),
            ("train_cpu_kwh", "the processors with all that ran on them (RAPL)"),
        )
        if key in results
    ]
    return f"Energy counted in that time: {', '.join(parts)}" if parts else None


def _settings(run: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """All that decides over the run, without what is said elsewhere, and without what was off or has no effect."""
    batch = {"effective batch": run["world_size"] * run["train_batch_size"] * run["gradient_accumulation_steps"]}
    elsewhere = {"task", "num_images", "dataset_name", "dataset_revision", "dataset_fingerprint"}
    elsewhere |= {"world_size", "train_batch_size", "gradient_accumulation_steps"} | set(without_effect(run))
    shown = {
        name: value
        for name, value in run.items()
        if name not in elsewhere
        and not (value is None or value is False or value in ("", [], {}))
        and not (name == "max_steps" and value < 0)
    }
    if isinstance(shown.get("target_statistics"), str):
        shown["target_statistics"] = Path(shown["target_statistics"]).name
    if "max_steps" in shown:
        shown.pop("num_train_epochs", None)
    return list({**batch, **shown}.items())


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="Folder that a run has written, or the name of a recipe of the paper.")
    parser.add_argument("--model_id", help="How users will name the model, such as user/name on the Hub.")
    parser.add_argument("--output", type=Path, help="Write elsewhere: a file, or a folder for card and pictures.")


def run_card(args: argparse.Namespace) -> None:
    """Write the model card of a trained folder (again), or of a recipe."""
    if Path(args.source).is_dir():
        if args.output is None:
            save_card(args.source, args.model_id)
            print(f"{args.source}/{CARD}")
            return
        text = card_of_run(Path(args.source), args.model_id)
    else:
        text = card_of_recipe(args.source)
    if args.output is None:
        print(text)
        return
    output = args.output
    if output.is_dir() or (output.suffix != ".md" and not output.exists()):
        output.mkdir(parents=True, exist_ok=True)
        for name in (*PICTURES, *EXAMPLES):
            if (Path(args.source) / name).exists():
                shutil.copy(Path(args.source) / name, output)
        output /= CARD
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(output)
