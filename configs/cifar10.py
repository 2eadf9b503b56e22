"""CIFAR-10 at 32 x 32, 512 colours: karpathy/minGPT's size (12 layers of width 256, 10 M parameters) with the paper's optimiser.

    python -m igpt_jax.quantize --config=configs/cifar10.py --workdir=runs/cifar10 --codes
    python -m igpt_jax.train --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.source=codes:runs/cifar10/codes

Hardware: one GPU; not run. Expected: about 2.04 nats per pixel at epoch 16, then overfitting (minGPT's play_image.ipynb, its own palette; not run here).
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = "tfds:cifar10"
    config.data.augment = "cifar"  # paper 3.1: 4 pixels of reflection, crop and flip
    config.data.view = "center_square"
    config.data.validation = 0.10
    config.model.layers = 12
    config.model.width = 256
    config.model.heads = 8
    config.steps = 5_625  # 16 epochs of 45,000 images / 128
    config.optim.warmup_steps = 351  # one epoch
    config.eval_every = 351
    config.save_every = 351
    return config
