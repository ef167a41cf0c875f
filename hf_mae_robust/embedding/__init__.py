"""Embeddings of images by frozen encoders as a Parquet file, pairs of near-duplicates among them, and a map.

Imports training/ and what that imports.
"""
