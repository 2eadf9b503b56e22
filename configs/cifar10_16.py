"""CIFAR-10 at 16 x 16, 128 colours, for sweeps of many small models on a laptop: 8 layers of width 128, 1,640,704 parameters.

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/accuracy_by_layer
    python -m experiments.studies.accuracy_by_loss --config=configs/cifar10_16.py --workdir=runs/accuracy_by_loss
    python -m experiments.studies.resolution --config=configs/cifar10_16.py --workdir=runs/resolution
    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data

Hardware: 2 CPU cores, 0.7 s a step. With your own arrays: --config.data.source=npz:DIR. The numbers are in experiments/results/, where they were run.
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
    config.model.remat = "dots"  # as fast on a CPU, and less memory: experiments/results/speed.md
    config.model.unroll = 8
    config.batch_size = 16  # 16 images * 256 pixels = 4,096 tokens a step
    config.steps = 800
    config.optim.warmup_steps = 50
    config.log_every = 50
    config.eval_every = 400
    config.eval_images = 500
    config.save_every = 200
    return config
