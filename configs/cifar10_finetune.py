"""Fine-tune the CIFAR-10 model of configs/cifar10.py to classify, with the paper's joint loss; 9,970,688 parameters.

    python -m igpt_jax.finetune --config=configs/cifar10_finetune.py --workdir=runs/cifar10_finetune --checkpoint=runs/cifar10
    python -m igpt_jax.evaluate --checkpoint=runs/cifar10_finetune/best

For ImageNet set config.data.source, config.model.classes=1000 and the sizes of the pretrained model.
Hardware: one GPU. Expected: not run.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.classes = 10
    config.loss.classification = 1.0  # joint loss, paper 2.4
    config.optim.learning_rate = 0.0003  # "often" a tenth of that of the pretraining, paper A.3
    config.optim.schedule = "constant"  # "no cosine", paper A.3
    config.optim.warmup_steps = 0
    config.best.metric = "accuracy"
    config.best.patience = 5  # evaluations, one per epoch
    return config
