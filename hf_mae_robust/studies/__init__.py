"""The paper's tables and figures as commands.

Starts run_pretrain and run_finetune in processes of their own; imports errors only.
"""
