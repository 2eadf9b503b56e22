"""CIFAR-10 as red, green and blue values one after the other: a loss in bits per dimension, as the literature on density estimation gives it.

    python -m igpt_jax.quantize --config=configs/cifar10_rgb.py --workdir=runs/cifar10_rgb
    python -m igpt_jax.train --config=configs/cifar10_rgb.py --workdir=runs/cifar10_rgb
    python -m igpt_jax.evaluate --checkpoint=runs/cifar10_rgb

Hardware: one GPU; not run. Others: PixelCNN++ 2.92, Image Transformer 2.90, Sparse Transformer of 59 M parameters 2.80 bits per dimension. The block is that of
later image GPTs (rotary positions, normalised queries and keys, gated mlp); any of these can be set in any recipe.
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
