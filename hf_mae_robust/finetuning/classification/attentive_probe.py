"""Attentive probes of frozen features: an attention pooling of the patch tokens, and a linear layer."""

import json
from typing import Any

import torch
from accelerate.utils import DistributedType
from timm.optim import param_groups_weight_decay
from torch import nn
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from ...conversion.encoders import OWN_CLASSES, has_head, open_config
from ...conversion.original import ENCODER_KEY_MAP, rename_to_original
from ...conversion.source import ModelSource
from ...conversion.stock import check_exportable, check_original_settings, encoder_tensors
from ...conversion.timm_format import TIMM_ARCHITECTURE, timm_arguments
from ...errors import UserError
from .trainer import ClassificationTrainer

# What descriptions, image processors and model cards ask the config of a classifier for.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
TRAINED = ("attn_pool", "head")
UNDECAYED = ("timm_model.attn_pool.latent",)


def check_kind(source: ModelSource) -> None:
    """Raises UserError for a checkpoint whose encoder is of another kind than MAE's ViT, or lacks its final norm."""
    config = open_config(source) if source.name is not None else None
    if config is None:  # an official file, or from scratch
        return
    others = "`--probe linear` and `analyze knn` take other encoders."
    if config.model_type in OWN_CLASSES and config.model_type != "beit":
        raise UserError(f"--probe attentive is for plain ViTs as MAE's, and this is a '{config.model_type}'. {others}")
    if has_head(config) and getattr(config, "use_mean_pooling", False):
        raise UserError(
            f"--probe attentive: {source.name} is a classifier that pools the mean, so its patch tokens have no final "
            "norm. Give the encoder that it was trained from."
        )


def _check_plain(classifier: PreTrainedModel) -> None:
    """Raises UserError for an encoder that timm's ViT does not compute."""
    try:
        check_exportable(classifier)
        check_original_settings(classifier.config)
    except UserError as error:
        raise UserError(f"--probe attentive is for plain ViTs as MAE's: {error}") from error


def attentive_probe(classifier: PreTrainedModel, std: float) -> TimmWrapperForImageClassification:
    """timm's Vision Transformer with `global_pool="map"`, in transformers' own wrapper of timm's models: the encoder of
    a classifier, frozen, and on its patch tokens after the final norm a new `AttentionPoolLatent` (one trained query,
    as many heads as the encoder, an MLP; attentive probes: Chen et al. 2022; Bardes et al. 2024) and a
    new linear layer. In float32 and in training mode.

    Args:
        classifier: a `BeitForImageClassification` with the final norm (CLS pooling).
        std: of the weights of the linear layer.

    Raises UserError for an encoder that is not MAE's ViT.
    """
    _check_plain(classifier)
    there: Any = classifier.config
    # With lists for tuples, as config.json gives them back: a resume compares the two.
    arguments = json.loads(json.dumps({**timm_arguments(there), "global_pool": "map"}))
    labels: dict[str, Any] = {"id2label": there.id2label, "label2id": there.label2id}
    sizes = {name: getattr(there, name) for name in SIZES}
    config = TimmWrapperConfig(architecture=TIMM_ARCHITECTURE, model_args=arguments, **labels, **sizes)
    probe = TimmWrapperForImageClassification(config)
    model: Any = probe.timm_model
    new = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(TRAINED)}
    model.load_state_dict({**rename_to_original(encoder_tensors(classifier), ENCODER_KEY_MAP), **new})
    nn.init.trunc_normal_(model.head.weight, std=std)
    nn.init.zeros_(model.head.bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return probe.train()


class AttentiveProbeTrainer(ClassificationTrainer):
    """Trains what `attentive_probe` gives, with AdamW. Every folder it writes holds the complete classifier.

    The encoder has neither dropout nor drop path, so that it computes the same in training and in evaluation.
    """

    def __init__(self, *, model: TimmWrapperForImageClassification, **kwargs: Any):
        super().__init__(model=model, **kwargs)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("--probe attentive does not work with FSDP and DeepSpeed, which split the weights.")

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Weight decay of matrices only: not of the query, biases and norms."""
        if self.optimizer is None:
            groups = param_groups_weight_decay(
                self.accelerator.unwrap_model(self.model), self.args.weight_decay, no_weight_decay_list=UNDECAYED
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(groups, **options)
        return self.optimizer
