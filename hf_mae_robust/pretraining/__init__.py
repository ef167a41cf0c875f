"""Masked-autoencoder pre-training: its arguments, target statistics, Trainer and cost.

Imports training/ and what that imports; never finetuning/.
"""
