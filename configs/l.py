"""iGPT-L on ImageNet at 32 x 32: 1,362,250,752 parameters (paper 3.3, table 5).

    python -m igpt_jax.quantize --config=configs/l.py --workdir=runs/l
    python -m igpt_jax.train --config=configs/l.py --workdir=runs/l

At 48 x 48 (--config.data.image_size=48) the model has 1,364,216,832 parameters. Table 5 gives that run a learning rate of 0.01, perhaps a typing error for
0.001.
One H100 (79 GiB): with --config.gradient_accumulation_steps=8 the batch needs 55 GiB without recomputation (igpt_jax.aot, not run).
Hardware: not run as a whole; experiments/results/gpu has the speed of an H200. 8.818e12 FLOP per image * 128 images * 1,000,000 steps = 1.13e21 FLOP.
One H100 at 40 % of its bf16 peak of 989e12 FLOP/s: 1.13e21 / (0.40 * 989e12) = 2.85e6 s = 33 days.
Expected: 2.0466 nats per pixel, the loss of OpenAI's model with OpenAI's palette. Not run here.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.layers = 48
    config.model.width = 1536
    config.model.heads = 16  # of 96
    config.optim.learning_rate = 0.001  # table 5
    return config
