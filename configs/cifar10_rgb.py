"""CIFAR-10 as a sequence of red, green and blue values, 9,772,288 parameters: the loss in bits per dimension, as in the literature on density estimation.

    python -m igpt_jax.quantize --config=configs/cifar10_rgb.py --workdir=runs/cifar10_rgb
    python -m igpt_jax.train --config=configs/cifar10_rgb.py --workdir=runs/cifar10_rgb
    python -m igpt_jax.evaluate --checkpoint=runs/cifar10_rgb

The block is that of later image GPTs: rotary positions, normalised queries and keys, gated mlp. Each of these can be set in any recipe.
Hardware: one GPU. 3.53e11 FLOP per image * 128 images * 5,625 steps = 2.54e17 FLOP, 11 minutes of an H100 at 40 % of its bf16 peak of 989e12 FLOP/s.
Expected: not run. Published by others, in bits per dimension: PixelCNN++ 2.92, Image Transformer 2.90, Sparse Transformer of 59 M parameters 2.80.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.palette.kind = "levels"
    config.palette.size = 256
    config.model.tokens_per_pixel = 3
    config.model.positions = 3 * config.data.get_ref("image_size") * config.data.get_ref("image_size")  # 3,072
    config.model.position_encoding = "rotary"
    config.model.qk_norm = True
    config.model.activation = "swiglu"
    return config
