"""What can be fine-tuned for, one module a task, used by finetune.py. Each has

    LOSS
        what the loss is, for the axis of loss.png
    source_options(arguments) -> dict
        for `open_splits`: which labels to read, and how
    build_model(arguments, class_names) -> (model, Pixels)
        with --eval_only one that was fine-tuned already, as it is
    make_trainer(arguments, model, pixels, **common) -> FinetuningTrainer
        with processor, transforms and loss of the task; without common["train_source"] one that only evaluates
    describe(trainer, arguments) -> str
        what is trained, as the first line of the run begins
    report(trainer) -> (str, list of str)
        after training and evaluation, on the first process: writes what belongs to the task into the output folder;
        gives the main result as a sentence and the names of the files

with `FinetuneArguments`. All but `report` raise ValueError for what is wrong with arguments, model and data.
"""
