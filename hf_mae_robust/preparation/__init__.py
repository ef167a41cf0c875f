"""Data sets prepared for training: images shrunk once, in Parquet shards, with their statistics beside them.

Imports finetuning/, for semantic maps and objects, statistics/, training/ and what these import.
"""
