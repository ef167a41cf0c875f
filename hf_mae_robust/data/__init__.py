"""From the name of a data set to batches of uint8 images, each process its own.

Imports errors, files, hub/ and model/ only.
"""
