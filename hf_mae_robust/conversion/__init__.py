"""Checkpoints of other layouts in, ours out: facebookresearch/mae, transformers' ViTs, timm, ONNX.

Imports data/, hub/ and model/, and the modules without a package.
"""
