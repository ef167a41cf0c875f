"""Downstream tasks on top of a pre-trained encoder, one sub-package each.

Imports training/ and what that imports; never pretraining/.
"""
