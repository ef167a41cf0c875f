"""What a model costs: tokens, floating-point operations, memory. Arithmetic on the settings alone.

An operation is a multiplication or an addition, as PyTorch's FlopCounterMode counts; norms, activations and softmax are
left out. d: width, n: tokens, m: the MLP's width. Everything is of one image.
"""

from dataclasses import dataclass

import torch

from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import kept_patches
from .adapting import freeze_blocks

# Backward: one product for the gradient of the input, one for that of the weights.
BACKWARD_TO_FORWARD = 2


@dataclass(frozen=True)
class Block:
    """A transformer block of one image.

    Attributes:
        name: "encoder 0", ... . width, mlp_width: d and m.
        inputs: tokens that are projected one by one; outputs: tokens that come out; keys: tokens attended to. Tokens
            of masked patches are projected once for a batch in the first block that has them: they are not `inputs`.
    """

    name: str
    width: int
    mlp_width: int
    inputs: int
    outputs: int
    keys: int

    @property
    def linear(self) -> int:
        """Operations of the linear layers, forward."""
        projected_queries = min(self.inputs, self.outputs)
        query = projected_queries * self.width**2
        keys_and_values = 2 * self.inputs * self.width**2
        output_and_mlp = self.outputs * (self.width**2 + 2 * self.width * self.mlp_width)
        return 2 * (query + keys_and_values + output_and_mlp)

    @property
    def attention(self) -> int:
        """Operations of the two products of attention, forward."""
        return 4 * self.outputs * self.keys * self.width

    @property
    def activations(self) -> int:
        """Numbers that training keeps for the way back: the inputs and outputs of both norms, query, key, value, the
        output of attention, and the MLP before and after its activation."""
        return (
            self.keys * 2 * self.width
            + self.outputs * (4 * self.width + 2 * self.mlp_width)
            + self.keys * 2 * self.width
        )


def patches_by_kind(config: ViTMAERobustConfig) -> tuple[int, int, int]:
    """Visible patches, masked ones with mid-level tokens, other masked ones."""
    visible, mid = int(config.num_patches * (1 - config.mask_ratio)), int(config.num_patches * config.mid_mask_ratio)
    return visible, mid, config.num_patches - visible - mid


def decoded_patches(config: ViTMAERobustConfig) -> tuple[int, int]:
    """Masked patches that the decoder reconstructs in training: those with mid-level tokens, and others."""
    return kept_patches(*patches_by_kind(config)[1:], config.decoder_keep_ratio)


def blocks(config: ViTMAERobustConfig) -> list[Block]:
    """The blocks of a training step (`return_logits=False`), in their order."""
    visible, mid, _ = patches_by_kind(config)
    kept_mid, kept_missing = decoded_patches(config)
    result, tokens = [], 1 + visible
    for index in range(config.num_hidden_layers):
        joining = mid if mid and index == config.mid_mask_layer_idx else 0
        sizes = {"inputs": tokens, "outputs": tokens + joining, "keys": tokens + joining}
        result.append(Block(f"encoder {index}", config.hidden_size, config.intermediate_size, **sizes))
        tokens += joining
    encoded = 1 + visible + kept_mid
    everything = encoded + kept_missing
    for index in range(config.decoder_num_hidden_layers):
        is_last = index == config.decoder_num_hidden_layers - 1
        sizes = {
            "inputs": encoded if index == 0 else everything,
            "outputs": kept_mid + kept_missing if is_last else everything,
            "keys": everything,
        }
        result.append(Block(f"decoder {index}", config.decoder_hidden_size, config.decoder_intermediate_size, **sizes))
    return result


def forward_flops(config: ViTMAERobustConfig) -> dict[str, int]:
    """Operations of the forward pass of one image in a training step, by part. What is done once for a batch is
    left out: it is less than a hundredth."""
    visible, (kept_mid, kept_missing) = patches_by_kind(config)[0], decoded_patches(config)
    parts = {"patches": 2 * visible * config.patch_dim * config.hidden_size, "encoder": 0, "decoder": 0}
    for block in blocks(config):
        parts[block.name.split()[0]] += block.linear + block.attention
    parts["decoder"] += 2 * (1 + visible + kept_mid) * config.hidden_size * config.decoder_hidden_size
    parts["prediction"] = 2 * (kept_mid + kept_missing) * config.decoder_hidden_size * config.patch_dim
    return parts


def training_flops(config: ViTMAERobustConfig) -> int:
    """Operations of the forward and the backward pass of one image. No gradient is needed for the pixels."""
    parts = forward_flops(config)
    return (1 + BACKWARD_TO_FORWARD) * sum(parts.values()) - parts["patches"]


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on one device, without what libraries and data loading need: an estimate
    (benchmarks/memory.py measures)."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        """All of it: activations go while gradients come, but what is freed is not always used again."""
        return self.weights + self.gradients + self.optimizer + self.activations


def num_parameters(config: ViTMAERobustConfig, frozen_blocks: int | None = None) -> dict[str, int]:
    """Encoder, decoder, and how many of both are trained (position embeddings are not). frozen_blocks: as
    --freeze_blocks."""
    with torch.device("meta"):
        model = ViTMAERobustForPreTraining(config)
    if frozen_blocks is not None:
        freeze_blocks(model, frozen_blocks)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(size for name, size in sizes.items() if name.startswith("vit."))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"encoder": encoder, "decoder": sum(sizes.values()) - encoder, "trained": trained}


def memory(
    config: ViTMAERobustConfig,
    batch_size: int,
    gradient_checkpointing: bool = False,
    activation_bytes: int = 4,
    frozen_blocks: int | None = None,
) -> Memory:
    """Of training with AdamW and float32 weights. activation_bytes: of a number; 2 under bf16. The activations are
    those of all blocks, frozen or not."""
    parameters = num_parameters(config, frozen_blocks)
    weights, trained = 4 * (parameters["encoder"] + parameters["decoder"]), 4 * parameters["trained"]
    layers = blocks(config)
    if gradient_checkpointing:
        kept = sum(block.keys * block.width for block in layers) + max(block.activations for block in layers)
    else:
        kept = sum(block.activations for block in layers)
    pixels = config.num_patches * config.patch_dim
    activations = batch_size * (activation_bytes * kept + 4 * 3 * pixels)  # the images, target and prediction
    return Memory(weights, trained, 2 * trained, activations)
