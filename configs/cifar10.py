"""CIFAR-10 at 32 x 32, 512 colours: 12 layers of width 256, 9,968,128 parameters, the size of karpathy/minGPT's image model with the paper's optimiser.

    python -m igpt_jax.quantize --config=configs/cifar10.py --workdir=runs/cifar10 --codes
    python -m igpt_jax.train --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.source=codes:runs/cifar10/codes

Hardware: one GPU. 7.81e10 FLOP per image * 128 images * 5,625 steps = 5.62e16 FLOP, 2.4 minutes of an H100 at 40 % of its bf16 peak of 989e12 FLOP/s.
Expected: about 2.04 nats per pixel after 16 epochs, and overfitting after that (minGPT's play_image.ipynb, with its own palette). Not run here.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = "tfds:cifar10"
    config.data.augment = "cifar"  # 4 pixels of reflection, crop and flip, paper 3.1
    config.data.view = "center_square"
    config.data.validation = 0.10
    config.model.layers = 12
    config.model.width = 256
    config.model.heads = 8
    config.steps = 5_625  # 16 epochs * 45,000 images / 128
    config.optim.warmup_steps = 351  # one epoch
    config.eval_every = 351
    config.save_every = 351
    return config
