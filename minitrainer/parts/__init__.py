"""Leaf functions of the Trainer: each stands alone, knows no Trainer, and can be read in any order.

    choices          the words that arguments accept: strategies, schedulers, optimizers
    outputs          what train, evaluate and predict hand back
    seeding          one seed for every random generator
    samplers         which example goes to which rank, in which order
    columns          drops the columns that a model does not take
    label_smoothing  the loss with softened targets
    gathering        nested tensors: pad, join, move, collect from all ranks
    metrics          runtime, throughput and memory figures
    inspection       lengths, parameter counts, parameter names
    checkpoints      names and order of checkpoint folders
    batch_size       halve the batch after an out-of-memory error
    processes        who waits for whom
    search_spaces    the default spaces and objective of a hyperparameter search
    sagemaker        the same gathering on SageMaker model parallelism
    logs             loggers that obey transformers' verbosity

The package itself imports nothing, so that `import minitrainer` stays cheap.
"""

# Read next: choices.py
