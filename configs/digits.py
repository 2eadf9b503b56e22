"""Handwritten digits at 8 x 8, 16 greys, the entire method in minutes on a laptop: 8 layers of width 64, 400,512 parameters.

    make demo
    python -m igpt_jax.train --config=configs/digits.py --workdir=runs/digits

The data are scikit-learn's digits: 1,797 images = 1,294 for training + 144 for validation + 359 for testing.
Hardware: 2 CPU cores; 400 steps * 0.25 s = about 2 minutes. Expected: experiments/results/digits.json.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.augment = "none"  # a flipped digit is not a digit
    config.data.view = "center_square"
    config.data.validation = 0.10
    config.palette.size = 16  # the data have 17 greys
    config.model.layers = 8
    config.model.width = 64
    config.model.heads = 4
    config.model.dtype = "float32"
    config.model.unroll = 8  # 1.4 times as fast as unroll = 1 on two CPU cores (0.25 s per step, not 0.35 s)
    config.batch_size = 64  # 64 images * 64 pixels = 4,096 tokens a step
    config.steps = 400  # 400 * 64 / 1,294 = 20 epochs
    config.optim.learning_rate = 0.003
    config.optim.warmup_steps = 20  # one epoch
    config.log_every = 20
    config.eval_every = 100
    config.eval_images = 0
    config.save_every = 100
    return config
