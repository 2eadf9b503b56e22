"""CIFAR-10 at 16 x 16, 128 colours, for sweeps of many small models on a laptop: 8 layers of width 128, 1,640,704 parameters.

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/accuracy_by_layer
    python -m experiments.studies.accuracy_by_loss --config=configs/cifar10_16.py --workdir=runs/accuracy_by_loss
    python -m experiments.studies.resolution --config=configs/cifar10_16.py --workdir=runs/resolution
    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data

Hardware: 2 CPU cores, 0.7 s per step: 800 steps * 0.7 s = 9 minutes of pretraining for each model. Your own arrays: --config.data.source=npz:DIR.
Expected: see the files in experiments/results/. Each holds its command, because the studies were run with other sizes and numbers of steps.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.data.image_size = 16
    config.palette.size = 128
    config.model.layers = 8
    config.model.width = 128
    config.model.heads = 4
    config.model.dtype = "float32"
    config.model.unroll = 8
    config.batch_size = 16  # 16 images * 256 pixels = 4,096 tokens a step
    config.steps = 800
    config.optim.warmup_steps = 50
    config.log_every = 50
    config.eval_every = 400
    config.eval_images = 500
    config.save_every = 200
    return config
