"""Handwritten digits, the whole method in minutes on a laptop: 8 layers of width 64 on 8 x 8 pixels of 16 greys.

    make demo
    python -m igpt_jax.train --config=configs/digits.py --workdir=runs/digits

Hardware: 2 CPU cores, about two minutes. scikit-learn's digits: 1,797 images, of which 1,438 for training (144 of them for validation), 359 for testing.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.augment = "none"  # a flipped digit is none
    config.data.view = "center_square"
    config.data.validation = 0.10
    config.palette.size = 16  # the set has 17 greys
    config.model.layers = 8
    config.model.width = 64
    config.model.heads = 4
    config.model.dtype = "float32"
    config.model.remat = "dots"  # as fast on a CPU, and less memory: experiments/results/speed.md
    config.model.unroll = 8  # 1.4 times faster than the loop on two CPU cores (0.25 s a step against 0.35)
    config.batch_size = 64  # 64 images * 64 pixels = 4,096 tokens a step
    config.steps = 400  # 400 * 64 / 1,294 = 20 epochs
    config.optim.learning_rate = 0.003
    config.optim.warmup_steps = 20  # one epoch
    config.log_every = 20
    config.eval_every = 100
    config.eval_images = 0
    config.save_every = 100
    return config
