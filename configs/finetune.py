"""Fine-tune any checkpoint to classify, with the paper's joint loss. What is 0 or "" here is taken from the checkpoint; the classes are those of the data.

    python -m igpt_jax.finetune --config=finetune --checkpoint=cifar10-16 --workdir=runs/mine --config.data.source=folder:DIR
    python -m igpt_jax.evaluate --checkpoint=runs/mine/best

Without config.data.source it reads the data that the checkpoint was trained on. config.data.image_size=48 with --interpolate_positions takes larger pictures.
Hardware: that of the checkpoint; 1,000 steps of 64 images. Expected: depends on the checkpoint and the data; compare with `probe` of the same checkpoint.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = ""
    config.data.image_size = 0
    config.data.validation = 0.1
    config.data.augment = "none"
    config.palette.size = 0
    config.model.layers = 0  # with it all that defines the parameters: width, heads, objective, position_encoding, ...
    config.model.classes = 0
    config.loss.classification = 1.0  # joint loss, paper 2.4
    config.optim.learning_rate = 0.0003  # "often" a tenth of that of the pretraining, paper A.3
    config.optim.schedule = "constant"  # "no cosine", paper A.3
    config.optim.warmup_steps = 0
    config.batch_size = 64
    config.steps = 1_000
    config.log_every = 20
    config.eval_every = 50
    config.save_every = 250
    config.best.metric = "accuracy"
    config.best.patience = 5  # evaluations
    return config
