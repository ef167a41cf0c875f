"""Looking into trained encoders: measures of tokens and attention, nearest neighbours, while training or afterwards.

Imports training/ and what that imports.
"""
