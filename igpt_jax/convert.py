"""Models of others into our checkpoints, and ours into Hugging Face's: `python -m igpt_jax.convert openai|hf|to-hf SRC DST`.

    python -m igpt_jax.convert openai igpt-s/model.ckpt-1000000 runs/igpt-s --palette=kmeans_centers.npy
    python -m igpt_jax.convert hf imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert to-hf runs/digits digits-hf

`openai` reads the TensorFlow checkpoint of openai/image-gpt (SRC: its prefix, or the folder that holds it): an autoregressive model where
it has `sos`, else bert; its class head is kept, optimizer and step are left out. `hf` reads a folder of transformers' ImageGPTModel,
ImageGPTForCausalImageModeling or ImageGPTForImageClassification, 4.26 to 5; the palette is that of its preprocessor_config.json. Both
write what the other programs take as --checkpoint: DST/checkpoints/STEP. `to-hf` reads such a checkpoint, or a run, and writes
model.safetensors, config.json and preprocessor_config.json. Every array is checked by name and shape before the first is written, and
DST is written whole or not at all.

How a picture becomes a square is stored too, as data.view: of `openai` the paper's, imagenet; of `hf` squash, what transformers' processor does, the
whole picture with its aspect not kept. On photographs in 3:2 the two differ in about nine of ten codes. OpenAI's weights saw squares from the middle
in training, also where they come by way of Hugging Face: `--view=imagenet` of evaluate and features. `to-hf` says where transformers will see
other squares than the model did.
"""

import argparse

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer
from igpt_jax.interop.huggingface import from_hf, to_hf
from igpt_jax.interop.openai import from_openai


def _main(arguments=None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m igpt_jax.convert", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="openai|hf|to-hf")
    for name, convert, source in (
        ("openai", from_openai, "prefix or folder of a TensorFlow checkpoint of openai/image-gpt"),
        ("hf", from_hf, "folder of a transformers ImageGPT"),
        ("to-hf", to_hf, "directory of a run, or of a converted model"),
    ):
        command = commands.add_parser(name, help=source)
        command.set_defaults(convert=convert)
        command.add_argument("source", metavar="SRC", help=source)
        command.add_argument("destination", metavar="DST", help="folder to write; it must not exist, or be empty")
        if name != "to-hf":
            command.add_argument("--palette", help="kmeans_centers.npy, the colours of the model; default: those that lie with SRC")
        if name == "openai":
            command.add_argument("--heads", type=integer(1), help="refuse a checkpoint with another number of heads")
        if name == "to-hf":
            command.add_argument("--classification", action="store_true", help="write the class head instead of the output matrix")
    settings = vars(parser.parse_args(arguments))
    convert = settings.pop("convert")
    try:
        config = convert(**settings)
    except ANY_ERROR as error:
        fail(error)
    described = f"{config.objective}, {config.layers} layers, width {config.width}, {config.heads} heads, {config.vocabulary} colours"
    print(f"wrote {settings['destination']}: {described}, {config.positions} positions, {config.classes or 'no'} classes")


if __name__ == "__main__":
    _main()
