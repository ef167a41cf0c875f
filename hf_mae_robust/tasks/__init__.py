"""What can be fine-tuned for, one module a task. Each has

    prepare(model, data, augmentation, recipe, training) -> (trainer, checkpoint to go on from or None)
    run(trainer, checkpoint) -> None

with the dataclasses of finetune_arguments.py. `prepare` raises whatever is wrong with arguments, model and data before
anything is written; `run` trains, evaluates and fills the output folder.
"""
