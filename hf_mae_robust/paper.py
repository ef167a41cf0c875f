"""The paper's figures, by the recipe that is meant to reproduce them. Nothing here was measured with this package."""

from typing import NamedTuple

TOP1 = "ImageNet-1K top-1 after fine-tuning, percent"


class PaperResult(NamedTuple):
    """what: the model. table: where the figures stand. figures: (name, value as printed)."""

    what: str
    table: str
    figures: tuple[tuple[str, str], ...]


def _pretraining(what: str, table: str, top1: str) -> PaperResult:
    return PaperResult(what, table, ((TOP1, top1),))


_ROBUST = "drop edge and global patch statistics"
PAPER_RESULTS = {
    "vit_base_800ep": _pretraining(f"ViT-B/16, {_ROBUST}, 800 epochs", "Table 2", "83.6"),
    "vit_large_800ep": _pretraining(f"ViT-L/16, {_ROBUST}, 800 epochs", "Table 2", "85.6"),
    "vit_base_mae_800ep": _pretraining("MAE, ViT-B/16, 800 epochs, the paper's run", "Table 2", "83.3"),
    "vit_base_mae_1600ep": _pretraining("MAE, ViT-B/16, 1600 epochs, by He et al. 2022", "Table 2", "83.6"),
    "vit_large_mae_800ep": _pretraining("MAE, ViT-L/16, 800 epochs, the paper's run", "Table 2", "85.3"),
    "vit_base_midlevel_800ep": _pretraining("ViT-B/16 with mid-level mask tokens, 800 epochs", "Table 5", "83.5"),
    "finetune_vit_base": PaperResult(
        "ViT-B/16, fine-tuned on ImageNet-1K",
        "Table 2",
        ((f"{TOP1}, paper's pre-training", "83.6"), (f"{TOP1}, MAE's, 800 epochs", "83.3")),
    ),
    "finetune_vit_large": PaperResult(
        "ViT-L/16, fine-tuned on ImageNet-1K",
        "Table 2",
        ((f"{TOP1}, paper's pre-training", "85.6"), (f"{TOP1}, MAE's, 800 epochs", "85.3")),
    ),
    "mask_rcnn_vit_base": PaperResult(
        "Mask R-CNN on ViT-B/16, COCO, 25 epochs",
        "Table 3, learning rate 1.6e-4",
        (
            ("Box AP, paper's pre-training", "48.9"),
            ("Mask AP, paper's pre-training", "43.7"),
            ("Box AP, MAE's", "48.8"),
            ("Mask AP, MAE's", "43.6"),
        ),
    ),
    "mask_rcnn_vit_large": PaperResult(
        "Mask R-CNN on ViT-L/16, COCO, 25 epochs",
        "Table 3, learning rate 1.5e-4",
        (
            ("Box AP, paper's pre-training", "52.4"),
            ("Mask AP, paper's pre-training", "46.3"),
            ("Box AP, MAE's", "51.9"),
            ("Mask AP, MAE's", "46.0"),
        ),
    ),
    "upernet_vit_base": PaperResult(
        "UperNet on ViT-B/16, ADE20K, 160,000 iterations",
        "Table 4",
        (("Mean IoU, paper's pre-training, percent", "46.92"), ("Mean IoU, MAE's, percent", "45.92")),
    ),
}
