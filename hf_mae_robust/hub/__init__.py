"""The Hugging Face Hub: requests that are retried, models in, uploads out, model cards, and the record of a run.

Imports errors, files, paper and model/ only.
"""
