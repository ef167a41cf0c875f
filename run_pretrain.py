r"""Pre-train a masked autoencoder.

Without arguments: a small model on scikit-learn's handwritten digits, on a CPU, in two to three minutes.

    python run_pretrain.py

Your own images (a folder, or any data set on the Hub):

    python run_pretrain.py --dataset_name path/to/images --config vit_base_800ep --output_dir outputs/my-model

ImageNet on 8 GPUs, streamed:

    accelerate launch --multi_gpu --num_processes 8 run_pretrain.py --config vit_base_800ep \
        --dataset_name ILSVRC/imagenet-1k --dataset_streaming --bf16 --torch_compile

The same command resumes from the newest checkpoint in --output_dir. Every flag can stand in the --config file.
"""

import signal

if __name__ == "__main__":
    # The imports take seconds. A SIGTERM that comes meanwhile waits for `main`, which answers it.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    from hf_mae_robust.pretrain import main

    main(description=__doc__)
