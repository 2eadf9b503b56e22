"""Convert models of other programs into our checkpoints, and ours for transformers: `python -m igpt_jax.convert openai|hf|to-hf SRC DST`.

    python -m igpt_jax.convert openai igpt-s/model.ckpt-1000000 runs/igpt-s --palette=kmeans_centers.npy
    python -m igpt_jax.convert hf imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert to-hf runs/digits digits-hf

`openai` reads the TensorFlow checkpoint of openai/image-gpt; SRC is its prefix, or the folder that contains it. The model is autoregressive
if the checkpoint contains `sos`, otherwise bert. Its class head is converted, the optimizer's state is not. `hf` reads a folder
of transformers' ImageGPTModel, ImageGPTForCausalImageModeling or ImageGPTForImageClassification, versions 4.26 to 5, with the palette of
its preprocessor_config.json. Both write DST/checkpoints/STEP, which the other programs take as --checkpoint=DST. `to-hf` reads such a checkpoint,
or a run, and writes model.safetensors, config.json and preprocessor_config.json. The names and shapes of all arrays are checked before
anything is written, and DST appears only when it is complete.

The checkpoint also stores how pictures are made square, as data.view. For `openai` it is imagenet, the paper's view. For `hf` it is squash, as in the
processor of transformers, which resizes the whole picture without keeping its aspect. On photographs in 3:2 the two views differ in about
nine of ten codes. OpenAI's weights saw square centre crops in training, also those that Hugging Face distributes: use
`--view=imagenet` of evaluate and features. `to-hf` prints a note if transformers will not make the same squares as the model's training.
"""

import argparse
from collections.abc import Sequence

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer
from igpt_jax.interop.huggingface import from_hf, to_hf
from igpt_jax.interop.openai import from_openai


def _main(arguments: Sequence[str] | None = None) -> None:
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
            command.add_argument("--palette", help="kmeans_centers.npy, the colours of the model; default: those stored with SRC")
        if name == "openai":
            command.add_argument("--heads", type=integer(1), help="fail if the checkpoint has another number of heads")
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
