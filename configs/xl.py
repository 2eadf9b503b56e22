"""iGPT-XL at 64 x 64: 6,810,875,904 parameters (paper 3.3, table 5). At 32 x 32 it has 6,801,438,720, the number that is usually quoted.

    python -m igpt_jax.quantize --config=configs/xl.py --workdir=runs/xl
    python -m igpt_jax.train --config=configs/xl.py --workdir=runs/xl

The paper trained it on ImageNet and 100 million web images, which were never published. Give your own images by --config.data.source=folder:DIR. The number
of heads was not published either; 24 heads of 128 is the choice of this project. "One epoch" of warmup is understood as one epoch of ImageNet.
Hardware: not run. 1.856e14 FLOP per image * 64 images * 2,000,000 steps = 2.375e22 FLOP.
One H100 at 40 % of its bf16 peak of 989e12 FLOP/s: 2.375e22 / (0.40 * 989e12) = 6.00e7 s = 695 days.
Expected: no loss was published.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.image_size = 64
    config.data.augment = "none"  # paper 3.1: no augmentation of the web images
    config.data.view = "center_square"
    config.model.layers = 60
    config.model.width = 3072
    config.model.heads = 24  # of 128; not published
    config.model.remat = "full"  # fits the pods of docs/reference/pods.md; auto would compile three times
    config.batch_size = 64  # 64 images * 4,096 pixels = 262,144 tokens a step, paper A.2
    config.steps = 2_000_000  # paper A.2
    config.optim.learning_rate = 0.0003  # table 5
    config.optim.warmup_steps = 19_218  # one epoch of ImageNet: 0.96 * 1,281,167 images / 64
    return config
