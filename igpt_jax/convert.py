"""Convert checkpoints of OpenAI or Hugging Face to ours, and ours to Hugging Face's.

    python -m igpt_jax.convert openai igpt-s/model.ckpt-1000000 runs/igpt-s --palette=kmeans_centers.npy
    python -m igpt_jax.convert hf imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert to-hf runs/digits digits-hf

`openai` reads the TensorFlow checkpoint of openai/image-gpt (SRC: its prefix or its folder). The model is autoregressive if the checkpoint has `sos`,
otherwise bert. The class head is kept; optimiser and step are left out. `hf` reads a folder of transformers' ImageGPTModel, ImageGPTForCausalImageModeling
or ImageGPTForImageClassification, versions 4.26 to 5, with the palette of its preprocessor_config.json. Both write DST/checkpoints/STEP, and the other
programs take DST as --checkpoint. `to-hf` reads such a checkpoint, or a run, and writes model.safetensors, config.json and preprocessor_config.json. The
name and shape of every array are checked before the first is written, and DST is written completely or not at all.

The view, which makes an image a square, is stored as data.view. For `openai` it is the paper's, imagenet. For `hf` it is squash, which transformers'
processor does: the entire image, without its aspect ratio. On photographs of 3:2 the two differ in about nine of ten codes. OpenAI's weights were trained
on squares from the middle, also if they come from Hugging Face: use `--view=imagenet` with evaluate and features. `to-hf` prints a note if transformers
will use another view than the model's training did.
"""

from collections.abc import Sequence

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer
from igpt_jax.interop.huggingface import from_hf, to_hf
from igpt_jax.interop.openai import from_openai


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m igpt_jax.convert", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="openai|hf|to-hf")
    for name, convert, source in (
        ("openai", from_openai, "prefix or folder of a TensorFlow checkpoint of openai/image-gpt"),
        ("hf", from_hf, "folder of a transformers ImageGPT"),
        ("to-hf", to_hf, "directory of a run, or of a converted model"),
    ):
        command = commands.add_parser(name, help=source, description=f"SRC: {source}.")
        command.set_defaults(convert=convert)
        command.add_argument("source", metavar="SRC", help=source)
        command.add_argument("destination", metavar="DST", help="folder to write; it must not exist, or be empty")
        if name != "to-hf":
            command.add_argument("--palette", help="kmeans_centers.npy, the colours of the model; default: those beside SRC")
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
