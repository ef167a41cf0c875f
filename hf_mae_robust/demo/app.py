"""The page of the demo: an image, a mask drawn by clicking, and what a model makes of them.

This module needs gradio; it is imported where the demo was asked for.
"""

import random
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from PIL import Image
from sklearn.datasets import load_sample_images

from ..errors import ImageDecodingError
from .inspector import Inspector
from .pictures import attention_picture, masked_picture, on_pixels, principal_components, shown_scale, to_shown

# Pictures, and what is remembered of them, are deleted after this number of seconds.
KEPT = 3600
SHOWN_HEIGHT = 300
CSS = "#masked img { cursor: crosshair; }"

NO_IMAGE = "There is no image yet: upload one, take one with the camera, or choose an example."
ABOUT = {
    "decoder": "Click on patches to mask them, or to show them again.",
    "norm_pix_loss": "The mean and contrast of each patch are taken from the original: the model was trained to "
    "predict patches that are normalised one by one.",
    "no_decoder": "This checkpoint has no decoder to reconstruct images with.",
    "attention": "Attention: to each patch in the last block, mean over the heads; bright is much. Features: the first "
    "three principal components of the patches of this image as red, green and blue. Both with nothing masked.",
    "bands": "The model takes files of the bands that it was trained on: TIFF, PNG of 16 bits, .npy, DICOM. Pictures "
    "show three bands or one, from their second to their 98th percentile.",
    "examples": "The examples are photos that scikit-learn brings along, CC BY 2.0: china.jpg by danielbuechele, "
    "flower.jpg by vultilion, both on Flickr.",
}


def examples() -> list[str]:
    """Image files that scikit-learn brings along."""
    return [str(path) for path in load_sample_images().filenames]


def read_upload(upload: dict[str, Any] | None, inspector: Inspector) -> torch.Tensor:
    """What gradio has stored of an uploaded image, decoded for a model. Raises gr.Error, with a sentence."""
    path = (upload or {}).get("path")
    if path is None:
        raise gr.Error(NO_IMAGE)
    # gradio lets the path of a request that leaves its `meta` out pass as it is.
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error(f"{path} is not an uploaded file.")
    try:
        return inspector.decode(Path(path))
    except ImageDecodingError as error:
        raise gr.Error(str(error)) from error


class Demo:
    """What the page does, for one model. `state` is what a visitor has in front of them: `pixels`, the prepared image
    `(C, H, W)`; `mask`, `(rows, columns)`, 1 = masked; `seed`."""

    def __init__(self, inspector: Inspector):
        self.inspector = inspector

    def open(
        self, upload: dict[str, Any] | None, mask_ratio: float | None = 0.0, seed: float | None = 0
    ) -> tuple[Any, ...]:
        """An upload -> all pictures: attention, features, of a classifier the classes; then with a decoder what `show`
        gives, else the prepared image. Nothing of nothing."""
        if upload is None:
            return (None,) * (2 + self.inspector.is_classifier + (4 if self.inspector.has_decoder else 1))
        pixels = self.inspector.prepare(read_upload(upload, self.inspector))
        observation, rgb = self.inspector.observe(pixels), self.inspector.picture(pixels)
        grid = self.inspector.grid_of(pixels)
        colours = on_pixels(principal_components(observation.features, grid), rgb.shape[-2:])
        seen: list[Any] = [to_shown(attention_picture(rgb, observation.attention)), to_shown(colours)]
        if observation.probabilities is not None:
            seen.append(self.named(observation.probabilities))
        if not self.inspector.has_decoder:
            return *seen, to_shown(rgb)
        return *seen, *self.draw({"pixels": pixels}, mask_ratio or 0, seed or 0)

    def named(self, probabilities: torch.Tensor) -> dict[str, float]:
        """Classes with their probabilities; of two of the same name (ImageNet has some) the second with its number."""
        named = {}
        for number, (name, value) in enumerate(zip(self.inspector.class_names, probabilities.tolist())):
            named[f"{name} ({number})" if name in named else name] = value
        return named

    def show(self, state: dict[str, Any]) -> tuple[dict[str, Any], Image.Image, Image.Image, str]:
        """State, masked picture, reconstruction, and how much is masked."""
        pixels, mask = state["pixels"], state["mask"]
        rebuilt = self.inspector.reconstruct(pixels, mask, state["seed"])
        masked = to_shown(masked_picture(self.inspector.picture(pixels), mask))
        shown = to_shown(self.inspector.picture_of(rebuilt, pixels))
        return state, masked, shown, f"{int(mask.sum())} of {mask.numel()} patches are masked."

    def draw(self, state: dict[str, Any] | None, mask_ratio: float | None, seed: float | None) -> tuple[Any, ...]:
        """A random mask."""
        # Before there is an image, or while a number is being typed.
        if state is None or mask_ratio is None or seed is None:
            return gr.skip()
        if not 0 <= int(seed) < 2**63:
            raise gr.Error(f"Seed {seed}: needs a whole number from 0 to 2^63 - 1.")
        mask = self.inspector.random_mask(self.inspector.grid_of(state["pixels"]), float(mask_ratio), int(seed))
        return self.show({**state, "mask": mask, "seed": int(seed)})

    def other_seed(self, state: dict[str, Any] | None) -> int:
        if state is None:
            raise gr.Error(NO_IMAGE)
        return random.randrange(2**31)

    def clear(self, state: dict[str, Any] | None) -> tuple[Any, ...]:
        """Nothing masked, to draw a mask from."""
        if state is None:
            raise gr.Error(NO_IMAGE)
        return self.show({**state, "mask": torch.zeros_like(state["mask"])})

    def click(self, state: dict[str, Any] | None, event: gr.SelectData) -> tuple[Any, ...]:
        """Mask the patch under the pointer, or show it again."""
        if state is None:
            raise gr.Error(NO_IMAGE)  # the visitor's was deleted after KEPT
        (rows, columns), mask = self.inspector.grid_of(state["pixels"]), state["mask"].clone()
        (height, width), scale = self.inspector.patch_size, shown_scale(state["pixels"].shape[-2:])
        x, y = event.index  # in pixels of the picture that `to_shown` has made
        row, column = y // (height * scale), x // (width * scale)
        # The border of the picture belongs to its last patch.
        row, column = min(max(int(row), 0), rows - 1), min(max(int(column), 0), columns - 1)
        mask[row, column] = ~mask[row, column]
        return self.show({**state, "mask": mask})


def build_app(inspector: Inspector, title: str) -> gr.Blocks:
    """The page. title: of the model, such as its Hub id."""
    demo = Demo(inspector)
    with gr.Blocks(title=f"{title}: hf_mae_robust", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {title}\n{_about(inspector)}")
        with gr.Row():
            with gr.Column(scale=1):
                gr.Markdown("**Image**")
                upload: gr.Image | gr.File
                if inspector.is_of_bands:  # browsers show no such file
                    upload = gr.File(show_label=False, height=SHOWN_HEIGHT, elem_id="input")
                else:
                    upload = gr.Image(show_label=False, type="filepath", height=SHOWN_HEIGHT, elem_id="input")
                    gr.Examples([[path] for path in examples()], inputs=upload, elem_id="examples")
                if inspector.has_decoder:
                    ratio = inspector.model.config.mask_ratio
                    ratio = gr.Slider(0, 1, ratio, step=0.01, label="Mask ratio", elem_id="ratio")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
                    with gr.Row():
                        other = gr.Button("Another mask", size="md", elem_id="other")
                        clear = gr.Button("Mask nothing", size="md", elem_id="clear")
            with gr.Column(scale=2):
                if inspector.is_classifier:
                    classes = gr.Label(label="Classes", num_top_classes=5, elem_id="classes")
                with gr.Row():
                    if inspector.has_decoder:
                        masked = _picture("**Masked**: click on patches", "masked", buttons=[])
                        rebuilt = _picture("**Reconstruction**", "reconstruction")
                    else:
                        prepared = _picture("**As the model sees it**", "prepared")
                with gr.Row():
                    attention = _picture("**Attention**", "attention")
                    components = _picture("**Features**", "components")
                if inspector.has_decoder:
                    count = gr.Markdown(elem_id="count")
        state = gr.State(time_to_live=KEPT)

        seen = [attention, components, *([classes] if inspector.is_classifier else [])]
        drawn = [state, masked, rebuilt, count] if inspector.has_decoder else [prepared]
        settings = [ratio, seed] if inspector.has_decoder else []
        # One forward pass at a time, whoever asks for it.
        queue: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        outputs = [*seen, *drawn]
        # First everything is emptied: pictures of another image must not stay beside one that cannot be read.
        emptied = upload.change(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)
        emptied.then(demo.open, [upload, *settings], outputs, preprocess=False, api_name="open", **queue)
        if inspector.has_decoder:
            for change in (ratio.change, seed.change):
                change(demo.draw, [state, *settings], drawn, api_name="draw", trigger_mode="always_last", **queue)
            other.click(demo.other_seed, state, seed, api_visibility="private", queue=False)
            clear.click(demo.clear, state, drawn, api_visibility="private", **queue)
            masked.select(demo.click, state, drawn, api_visibility="private", trigger_mode="multiple", **queue)
    return app


def _picture(caption: str, name: str, **settings: Any) -> gr.Image:
    """With its caption above: gradio's labels would cover the first patches."""
    with gr.Column(min_width=220):
        gr.Markdown(caption)
        settings = {"buttons": ["fullscreen", "download"], **settings, "show_label": False, "interactive": False}
        return gr.Image(format="png", height=SHOWN_HEIGHT, elem_id=name, **settings)


def _about(inspector: Inspector) -> str:
    config = inspector.model.config
    parts = ["decoder"] if inspector.has_decoder else [] if inspector.is_classifier else ["no_decoder"]
    if inspector.has_decoder and config.norm_pix_loss:
        parts.append("norm_pix_loss")
    patch, name = " x ".join(map(str, inspector.patch_size)), type(inspector.model).__name__
    model = f"{name}, {inspector.model.num_parameters() / 1e6:.1f} M parameters, patches of {patch} pixels."
    parts += ["attention", "bands" if inspector.is_of_bands else "examples"]
    return " ".join([model, *(ABOUT[part] for part in parts)])


def launch(app: gr.Blocks, **settings: Any) -> tuple[Any, ...]:
    """`app.launch` without what needs the network or Node. settings: of gradio, such as `share`, `server_name`."""
    return app.launch(css=CSS, ssr_mode=False, footer_links=["gradio"], **settings)
