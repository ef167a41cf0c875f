"""Checkpoints of the official MAE code (github.com/facebookresearch/mae, models_mae.py) in and out.

The tensors are the same. Only their names differ, and the official code keeps the query, key and value projections in
one tensor. `KEY_MAP` says all of it, and both directions are read from it. A key that it does not have, or one that is
absent, is an error: nothing is skipped or left at its random initialisation.
"""

import argparse
import math
import pickle
import re
import tempfile
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from .model.configuration_vit_mae_robust import to_pair
from .transforms import evaluation_processor

_BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.{qkv}_proj",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Official name -> ours. N: the number of a block; *: weight and bias; {qkv}: three tensors, fused in this order, along
# the first dimension, in the official one.
KEY_MAP = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.*": "vit.embeddings.patch_embeddings.projection.*",
    **{f"blocks.N.{official}.*": f"vit.layers.N.{ours}.*" for official, ours in _BLOCK.items()},
    "norm.*": "vit.layernorm.*",
    "decoder_embed.*": "decoder.decoder_embed.*",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    **{f"decoder_blocks.N.{official}.*": f"decoder.decoder_layers.N.{ours}.*" for official, ours in _BLOCK.items()},
    "decoder_norm.*": "decoder.decoder_norm.*",
    "decoder_pred.*": "decoder.decoder_pred.*",
}


def _expand_key_map(num_blocks: int, num_decoder_blocks: int) -> dict[str, list[str]]:
    """`KEY_MAP` for a model of so many blocks: official key -> our key, or our three. No decoder: 0 decoder blocks."""
    keys = {}
    for official, ours in KEY_MAP.items():
        blocks = num_decoder_blocks if ours.startswith("decoder.") else num_blocks
        if not blocks:
            continue
        numbers = range(blocks) if ".N." in official else (0,)
        for number, leaf in product(numbers, ("weight", "bias") if "*" in official else ("",)):
            key, name = (text.replace(".N.", f".{number}.").replace("*", leaf) for text in (official, ours))
            keys[key] = [name.replace("{qkv}", part) for part in ("qkv" if "{qkv}" in name else "q")]
    return keys


def _listed(keys: Iterable[str], limit: int = 6) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def read_original(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, on the CPU, under their official names.

    Reads `{"model": state_dict, ...}`, as main_pretrain.py writes it, or a bare state dict, from a PyTorch file or a
    `.safetensors` one. No code in the file is run: apart from what tensors need, only the `argparse.Namespace` of real
    files is allowed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file asks for other code to be run, is damaged, or holds no (or not only) tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make PyTorch's reader fail in any way, OSError included
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            raise ValueError(
                f"{path} was refused, and none of its code was run: loading it would call {wanted[1]}, which has no "
                "place in a file of tensors."
            ) from None
        kind = "safetensors" if isinstance(error, SafetensorError) else "PyTorch"
        raise ValueError(f"{path} is truncated, damaged or no {kind} file ({type(error).__name__}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f'{path} holds no tensors: needs a state dict, bare or under "model".')
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if others:
        raise ValueError(f"{path} is no state dict: these entries are no named tensors: {_listed(others)}.")
    return dict(content)


def _count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Different numbers N in `prefix.N.`, and at least 1, so that a model without any is reported as incomplete."""
    return max(1, len({match[1] for key in keys if (match := re.match(rf"{prefix}\.(\d+)\.", key))}))


def _check_keys(found: Iterable[str], expected: Iterable[str]):
    found, expected = set(found), set(expected)
    unknown, missing = found - expected, expected - found
    problems = [
        f"{what} {_listed(keys)}" for what, keys in (("unknown keys:", unknown), ("missing keys:", missing)) if keys
    ]
    if problems:
        raise ValueError(
            f"Not the layout of the official MAE: {'; '.join(problems)}. Expected, with N the number of a block and * "
            f"weight and bias (the encoder alone, or both): {', '.join(KEY_MAP)}."
        )


def _shape(state_dict: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    shape = state_dict[key].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{key} has shape {tuple(shape)}, needs {dimensions} dimensions, none of them empty.")
    return shape


def _check_heads(flag: str, heads: int | None, width: int):
    advice = "The official MAE uses 12 for ViT-B, 16 for ViT-L, ViT-H and the decoder."
    if heads is None:
        raise ValueError(f"--{flag} is needed: the number of heads cannot be seen in the tensors. {advice}")
    if heads < 1 or width % heads:
        raise ValueError(f"--{flag} {heads}: does not divide the width {width} that the tensors have. {advice}")


def _infer_sizes(state_dict: Mapping[str, Tensor], keys: Iterable[str]) -> dict:
    """Fields of the config that the shapes tell, but for the image size."""
    hidden_size, num_channels, patch_height, patch_width = _shape(state_dict, "patch_embed.proj.weight", 4)
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_blocks(keys, "blocks"),
        "intermediate_size": _shape(state_dict, "blocks.0.mlp.fc1.weight", 2)[0],
        "num_channels": num_channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
    }
    if "decoder_embed.weight" in state_dict:
        sizes["decoder_hidden_size"] = _shape(state_dict, "decoder_embed.weight", 2)[0]
        sizes["decoder_num_hidden_layers"] = _count_blocks(keys, "decoder_blocks")
        sizes["decoder_intermediate_size"] = _shape(state_dict, "decoder_blocks.0.mlp.fc1.weight", 2)[0]
    return sizes


def _infer_image_size(state_dict: Mapping[str, Tensor], patch_size: int | tuple[int, int]) -> int | tuple[int, int]:
    num_patches = _shape(state_dict, "pos_embed", 3)[1] - 1
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(
            f"pos_embed has {num_patches} patches, which is no square grid: pass image_size=(height, width), in pixels."
        )
    height, width = (side * size for size in to_pair(patch_size))
    return height if height == width else (height, width)


def from_original(
    state_dict: Mapping[str, Tensor],
    num_attention_heads: int,
    decoder_num_attention_heads: int | None = None,
    **config_overrides,
) -> ViTMAERobustForPreTraining | ViTMAERobustModel:
    """A model of ours with official weights, in evaluation mode. It computes what the official one does.

    Args:
        state_dict: tensors by official name, as from `read_original`. Among them `patch_embed.proj.weight`
            `(d, C, patch height, patch width)`, `pos_embed` `(1, 1 + L, d)`, `blocks.N.attn.qkv.weight` `(3 * d, d)`,
            `decoder_pred.weight` `(D, decoder d)`. They are copied, and kept in their type; the position tables are
            taken as they are.
        num_attention_heads, decoder_num_attention_heads: what shapes do not tell. The latter is needed for files
            with a decoder, and not looked at for others.
        config_overrides: fields of [`ViTMAERobustConfig`]. `image_size` is needed where the grid of patches is not
            square; `norm_pix_loss=False` for models trained so (default: True). To train on exactly as MAE does, pass
            `decoder_attention_probs_dropout_prob=0.0`: the default of 0.3 is this project's.

    Returns:
        `ViTMAERobustForPreTraining`; without decoder keys (as in mae_pretrain_vit_base.pth, which is published without
        a decoder) `ViTMAERobustModel`.

    Raises:
        ValueError: unknown or missing keys, shapes that do not fit together, heads missing or not dividing the width,
            or a fine-tuned classifier, which is not supported yet.
    """
    keys = list(state_dict)
    classifier_keys = [key for key in keys if key.startswith(("fc_norm.", "head."))]
    if classifier_keys:
        raise ValueError(
            f"Fine-tuned classifiers are not supported yet; this is one (keys {_listed(classifier_keys)})."
        )
    has_decoder = any(key.startswith("decoder_") or key == "mask_token" for key in keys)
    key_map = _expand_key_map(_count_blocks(keys, "blocks"), has_decoder and _count_blocks(keys, "decoder_blocks"))
    _check_keys(keys, key_map)

    sizes = _infer_sizes(state_dict, keys)
    if "image_size" not in config_overrides:
        sizes["image_size"] = _infer_image_size(state_dict, sizes["patch_size"])
    _check_heads("num_attention_heads", num_attention_heads, sizes["hidden_size"])
    if has_decoder:
        _check_heads("decoder_num_attention_heads", decoder_num_attention_heads, sizes["decoder_hidden_size"])
        sizes["decoder_num_attention_heads"] = decoder_num_attention_heads
    config = ViTMAERobustConfig(**{**sizes, "num_attention_heads": num_attention_heads, **config_overrides})

    renamed = {}
    for key, names in key_map.items():
        tensor = state_dict[key]
        if len(names) > 1 and (tensor.dim() == 0 or tensor.shape[0] % len(names)):
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}: cannot be split into query, key and value.")
        for name, part in zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor]):
            renamed[name if has_decoder else name.removeprefix("vit.")] = part.detach().clone()
    model = (ViTMAERobustForPreTraining if has_decoder else ViTMAERobustModel)(config)
    try:
        model.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The tensors do not fit the sizes that they and the overrides tell. {error}") from error
    return model.eval()


def to_original(model: ViTMAERobustForPreTraining | ViTMAERobustModel) -> dict[str, Tensor]:
    """The inverse of `from_original`: copies of the tensors by official name, bit-identical, to be saved as
    `torch.save({"model": to_original(model)}, path)` and read by the official code.

    The layout holds no settings: remember the heads, `norm_pix_loss` and the like.

    Raises ValueError for a tensor that the layout has no place for: mid-level mask token, patch statistics.
    """
    has_decoder = hasattr(model, "vit")
    state_dict = {name if has_decoder else f"vit.{name}": tensor for name, tensor in model.state_dict().items()}
    config = model.config
    key_map = _expand_key_map(config.num_hidden_layers, config.decoder_num_hidden_layers if has_decoder else 0)
    expected = {name for names in key_map.values() for name in names}
    if homeless := state_dict.keys() - expected:
        raise ValueError(
            f"The layout of the official MAE has no place for {_listed(homeless)}. A model with mid-level mask tokens "
            "(mid_mask_ratio > 0) or patch statistics (target_normalization='global_patch') cannot be written in it."
        )
    if absent := expected - state_dict.keys():
        raise ValueError(f"The layout of the official MAE needs {_listed(absent)}, which this model does not have.")
    return {key: torch.cat([state_dict[name].detach() for name in names]) for key, names in key_map.items()}


def convert(
    path: str | Path,
    output_dir: str | Path,
    num_attention_heads: int,
    decoder_num_attention_heads: int | None = None,
    **config_overrides,
) -> ViTMAERobustForPreTraining | ViTMAERobustModel:
    """Official checkpoint -> folder for `from_pretrained`, with the image processor of MAE's evaluation.

    The folder appears when it is complete, never half-written. Arguments and errors: as `read_original` and
    `from_original`; FileExistsError where `output_dir` is a file or a folder that is not empty. Returns the model.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not an empty folder. Choose another one, or remove it.")
    model = from_original(read_original(path), num_attention_heads, decoder_num_attention_heads, **config_overrides)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, because a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as folder:
        complete = Path(folder) / "complete"
        model.save_pretrained(complete)
        config = model.config
        form = {name: getattr(config, name) for name in ("num_channels", "image_mean", "image_std")}
        evaluation_processor(config.image_size, **form).save_pretrained(complete)
        complete.replace(output_dir)
    return model


def add_convert_arguments(parser: argparse.ArgumentParser):
    """The arguments of `python -m hf_mae_robust convert`."""
    parser.add_argument("path", metavar="OFFICIAL.pth", help="checkpoint of facebookresearch/mae (or .safetensors)")
    parser.add_argument("output_dir", metavar="OUT", help="folder to write, for from_pretrained; must not exist yet")
    parser.add_argument("--num_attention_heads", type=int, required=True, help="encoder; ViT-B 12, ViT-L and ViT-H 16")
    parser.add_argument("--decoder_num_attention_heads", type=int, help="needed if the file has a decoder; MAE: 16")
    parser.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the model was trained on targets normalised per patch (default: yes)",
    )


def run_convert(args: argparse.Namespace):
    """Turn a checkpoint of the official MAE code into a folder that from_pretrained loads."""
    heads = args.num_attention_heads, args.decoder_num_attention_heads
    model = convert(args.path, args.output_dir, *heads, norm_pix_loss=args.norm_pix_loss)
    config = model.config
    sizes = f"image {config.image_size}, patch {config.patch_size}, encoder {config.hidden_size} x "
    sizes += f"{config.num_hidden_layers} blocks x {config.num_attention_heads} heads"
    if isinstance(model, ViTMAERobustForPreTraining):
        sizes += f", decoder {config.decoder_hidden_size} x {config.decoder_num_hidden_layers} blocks x "
        sizes += f"{config.decoder_num_attention_heads} heads"
    print(f"{args.output_dir}: {type(model).__name__}, {model.num_parameters():,} parameters, {sizes}")
