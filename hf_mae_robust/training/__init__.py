"""What every training run shares: arguments, set-up, the Trainer, checkpoints, stopping, pictures.

Imports conversion/, data/, hub/ and model/; knows no task.
"""
