"""Models -> ONNX, checked against the original in onnxruntime."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..model.configuration_vit_mae_robust import to_pair

# What torch.onnx builds the file with, and what it is checked with.
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The names that optimum looks for.
FILE, INPUT = "model.onnx", "pixel_values"
_TOLERANCE = 1e-4


def check_packages() -> None:
    """Raises ValueError where a package that is needed is not installed."""
    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f'--to onnx needs {", ".join(absent)}: pip install ".[onnx]", in a clone of hf_mae_robust.')


class _OneOutput(nn.Module):
    """A graph has tensors for outputs, and no dataclass."""

    def __init__(self, model: PreTrainedModel, output: str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(pixel_values), self.output)


def output_name(model: PreTrainedModel) -> str:
    """`"logits"` of a classifier or segmenter, `"last_hidden_state"` of an encoder."""
    is_encoder = not any(part in type(model).__name__ for part in ("Classification", "Segmentation"))
    return "last_hidden_state" if is_encoder else "logits"


def _drop_stack_traces(model: Any) -> None:
    """The exporter notes of each node the lines of Python that it came from, with the paths of this machine. model: an
    `onnx_ir.Model`."""
    graphs = [model.graph, *model.functions.values()]
    for properties in (node.metadata_props for graph in graphs for node in graph.all_nodes()):
        for name in [name for name in properties if name.endswith("stack_trace")]:
            del properties[name]


def save_onnx(model: PreTrainedModel, folder: Path) -> None:
    """Write `model.onnx` and `config.json` into a folder that exists, as optimum lays one out.

    The graph takes `pixel_values` `(N, C, H, W)`, float32, normalised, with any N and the image size of the model, and
    gives what `output_name` says. Above 2 GB the weights are in `model.onnx.data` beside it.

    Raises ValueError where a package is missing, or onnxruntime gives something else than the model (by more than 1e-4
    of the largest value, for 1 and for 3 images).
    """
    check_packages()
    import onnxruntime  # optional

    output, encoder = output_name(model), getattr(model.config, "backbone_config", model.config)
    size = (encoder.num_channels, *to_pair(encoder.image_size))
    graph = _OneOutput(model.float(), output).eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's and onnxscript's own making
        program: Any = torch.onnx.export(
            graph,
            (torch.zeros(2, *size),),  # not 1, which torch.export would take for a constant
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            input_names=[INPUT],
            output_names=[output],
            dynamo=True,
            verbose=False,
        )
    _drop_stack_traces(program.model)
    program.save(folder / FILE)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randn(count, *size, generator=torch.Generator().manual_seed(count))
        found = torch.from_numpy(session.run([output], {INPUT: images.numpy()})[0])
        with torch.no_grad():
            expected = graph(images)
        difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, largest):
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} does not compute what {type(model).__name__} does: {output} of "
                f"{count} image(s) differ by up to {difference:.2g}, where the largest value is {largest:.2g}."
            )
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
