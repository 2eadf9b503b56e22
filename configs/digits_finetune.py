"""Fine-tune the model of configs/digits.py to classify, with the paper's joint loss; 401,152 parameters.

    python -m igpt_jax.finetune --config=configs/digits_finetune.py --workdir=runs/digits_finetune --checkpoint=runs/digits
    python -m igpt_jax.evaluate --checkpoint=runs/digits_finetune/best

Without --checkpoint it starts from random parameters.
Hardware: 2 CPU cores; 200 steps * 0.25 s = about a minute. Expected: not run.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.model.classes = 10
    config.loss.classification = 1.0  # joint loss, paper 2.4
    config.optim.learning_rate = 0.001
    config.optim.schedule = "constant"  # "no cosine", paper A.3
    config.optim.warmup_steps = 0
    config.steps = 200
    config.eval_every = 20
    config.best.metric = "accuracy"
    config.best.patience = 5  # evaluations
    return config
