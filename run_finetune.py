r"""Fine-tune a pre-trained encoder: image classification, linear probes of frozen features, semantic segmentation,
detection and instance segmentation.

Without arguments: what `python run_pretrain.py` has trained, on scikit-learn's digits, on a CPU.

    python run_finetune.py

What you have pre-trained, on your labelled images (a folder with one sub-folder a class, or a data set of the Hub):

    python run_finetune.py --config finetune_vit_base --model_name_or_path outputs/my-model \
        --dataset_name path/to/images --output_dir outputs/my-classifier --bf16

The official MAE on ImageNet, on 8 GPUs, streamed; the same from scratch; a linear probe:

    accelerate launch --multi_gpu --num_processes 8 run_finetune.py --config finetune_vit_base \
        --model_name_or_path facebook/vit-mae-base --dataset_name ILSVRC/imagenet-1k --dataset_streaming --bf16
    ... --from_scratch
    ... --linear_probe --config linear_probe_vit_base

Semantic segmentation (UperNet), and detection with masks (Mask R-CNN):

    python run_finetune.py --task segmentation --config upernet_vit_base --model_name_or_path outputs/my-model \
        --dataset_name path/to/ade20k --do_reduce_labels --output_dir outputs/my-segmenter --bf16
    python run_finetune.py --task detection --config mask_rcnn_vit_base --model_name_or_path outputs/my-model \
        --dataset_name path/to/coco --output_dir outputs/my-detector --bf16

The same command resumes from the newest checkpoint in --output_dir. Every flag can stand in the --config file.
"""

import signal

if __name__ == "__main__":
    # The imports take seconds. A SIGTERM that comes meanwhile waits for `main`, which answers it.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    from hf_mae_robust.finetune import main

    main(description=__doc__)
