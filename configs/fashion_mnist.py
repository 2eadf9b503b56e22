"""Fashion-MNIST at 28 x 28, 16 greys: 8 layers of width 128, 1,679,616 parameters.

    python -m igpt_jax.quantize --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist --codes
    python -m igpt_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist --config.data.source=codes:runs/fashion_mnist/codes

Hardware: one GPU. 1.12e10 FLOP per image * 128 images * 8,440 steps = 1.21e16 FLOP, 31 seconds of an H100 at 40 % of its bf16 peak of 989e12 FLOP/s.
Expected: not run.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = "tfds:fashion_mnist"
    config.data.image_size = 28
    config.data.augment = "none"
    config.data.view = "center_square"
    config.data.validation = 0.10
    config.palette.size = 16  # greys
    config.model.layers = 8
    config.model.width = 128
    config.model.heads = 4
    config.steps = 8_440  # 20 epochs * 54,000 images / 128
    config.optim.warmup_steps = 422  # one epoch
    config.eval_every = 422
    config.save_every = 422
    return config
