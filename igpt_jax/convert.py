"""Convert checkpoints of OpenAI or Hugging Face to ours, ours to Hugging Face's, and a run to one file to be published or served.

    python -m igpt_jax.convert openai igpt-s runs/igpt-s
    python -m igpt_jax.convert openai igpt-s/model.ckpt-1000000 runs/igpt-s --palette=kmeans_centers.npy
    python -m igpt_jax.convert hf openai/imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert hf imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert to-hf runs/digits digits-hf
    python -m igpt_jax.convert to-hf runs/digits digits-hf --push=OWNER/digits
    python -m igpt_jax.convert pack runs/digits digits.safetensors
    python -m igpt_jax.convert export runs/digits digits.jaxexport

`openai` reads the TensorFlow checkpoint of openai/image-gpt (SRC: its prefix or its folder). The model is autoregressive if the checkpoint has `sos`,
otherwise bert. The class head is kept; optimiser and step are left out. `hf` reads a folder of transformers' ImageGPTModel, ImageGPTForCausalImageModeling
or ImageGPTForImageClassification, versions 4.26 to 5, with the palette of its preprocessor_config.json. Biases, which training in transformers
moves away from zero, are kept (config.model.bias); where all of them are zero, as in OpenAI's weights, the model is the paper's, without. Both take a name
where SRC does not exist here: igpt-s, igpt-m, igpt-l and igpt-s-bert to igpt-l-bert, also igpt-s@524000 for an earlier step, are downloaded from OpenAI's
address or a --mirror; OWNER/NAME or OWNER/NAME@REVISION from the Hugging Face hub. Downloads are kept: see igpt_jax/interop/cache.py. Both write
DST/checkpoints/STEP, and the other programs take DST as --checkpoint. `to-hf` reads such a checkpoint, or a run, and writes model.safetensors, config.json
and preprocessor_config.json. The name and shape of every array are checked before the first is written, and DST is written completely or not at all.

The view, which makes an image a square, is stored as data.view. For `openai` it is the paper's, imagenet. For `hf` it is squash, which transformers'
processor does: the entire image, without its aspect ratio. On photographs of 3:2 the two differ in about nine of ten codes. OpenAI's weights were trained
on squares from the middle, also if they come from Hugging Face: use `--view=imagenet` with evaluate and features. `to-hf` prints a note if transformers
will use another view than the model's training did.

`to-hf --push=OWNER/NAME` also writes a model card, README.md, with what the checkpoint says about data and training, and uploads the folder to the hub. The
licence is left to the author. Programs take a model of the hub as --checkpoint=hf:OWNER/NAME, without a conversion by hand.

`pack` writes the newest complete checkpoint of a run, without optimiser, as one file of safetensors: parameters in float16, palette, recipe, class names and
checksums. All programs take the file as --checkpoint. It holds no path of the machine: a data source that is a path is left out, and `--data=tfds:NAME`
names one that others can have. Parameters that are not finite, or that 16 bits cannot hold, are refused.

`export` writes the forward pass, codes to logits and features, as one file of jax.export: any batch size, CPUs, NVIDIA's GPUs and TPUs, parameters inside.
jax runs it without this package. DST.json says what goes in and comes out, and has the palette and the lines of Python that run the file. Before it is
written, it is compared with the model on this machine. A later version of jax reads it for at least six months, so keep the checkpoint too. ONNX is
not written: jax2onnx (0.17.1), which can do it, needs orbax-checkpoint below 0.11.37, a former version of what reads and writes checkpoints here.
"""

from collections.abc import Sequence

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer
from igpt_jax.distributed.multihost import check_alone
from igpt_jax.interop import hub
from igpt_jax.interop.export import PLATFORMS, export
from igpt_jax.interop.openai import from_openai
from igpt_jax.interop.pack import pack
from igpt_jax.training import checkpoints
from igpt_jax.training.model_file import DTYPES


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m igpt_jax.convert", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="openai|hf|to-hf|pack|export")
    for name, convert, source in (
        ("openai", from_openai, "prefix or folder of a TensorFlow checkpoint of openai/image-gpt, or igpt-s, igpt-m, igpt-l to download it"),
        ("hf", hub.from_hub, "folder of a transformers ImageGPT, or OWNER/NAME of one on the Hugging Face hub"),
        ("to-hf", hub.publish, "directory of a run, or of a converted model"),
        ("pack", pack, "directory of a run, or of a converted model"),
        ("export", export, "directory of a run or of a converted model, a file of pack, or the name of a model in the package"),
    ):
        command = commands.add_parser(name, help=source, description=f"SRC: {source}.")
        command.set_defaults(convert=convert)
        command.add_argument("source", metavar="SRC", help=source)
        written = "file to write" if name in ("pack", "export") else "folder to write; it must not exist, or be empty"
        command.add_argument("destination", metavar="DST", help=written)
        if name in ("openai", "hf"):
            command.add_argument("--palette", help="kmeans_centers.npy, the colours of the model; default: those beside SRC")
        if name == "openai":
            command.add_argument("--heads", type=integer(1), help="fail if the checkpoint has another number of heads")
            command.add_argument("--mirror", metavar="URL", help="download from there, with the paths below image-gpt of OpenAI's address")
        if name == "to-hf":
            command.add_argument("--classification", action="store_true", help="write the class head instead of the output matrix")
            command.add_argument("--push", metavar="OWNER/NAME", help="upload to this repository of the hub, with a model card")
            command.add_argument("--private", action="store_true", help="make the repository private, if there is none yet")
        if name == "export":
            platforms = f"comma-separated, of {','.join(PLATFORMS)}, this machine's among them; default: all"
            command.add_argument("--platforms", metavar="LIST", type=lambda text: text.split(","), default=PLATFORMS, help=platforms)
        if name == "pack":
            command.add_argument("--dtype", choices=DTYPES.values(), default="float16", help="of the parameters in the file")
            command.add_argument("--data", help="data source that the file names, digits or tfds:NAME; default: that of the run if it is such a one")
        if name in ("to-hf", "pack", "export"):
            command.add_argument("--ema", action="store_true", help=checkpoints.HELP_EMA)
        if name in ("pack", "export"):
            command.add_argument("--overwrite", action="store_true", help="replace DST")
    settings = vars(parser.parse_args(arguments))
    convert = settings.pop("convert")
    try:
        check_alone("convert")
        if convert in (hub.publish, pack, export):
            settings["source"] = hub.local(settings["source"])
        config = convert(**settings)
    except ANY_ERROR as error:
        fail(error)
    described = f"{config.objective}, {config.layers} layers, width {config.width}, {config.heads} heads, {config.vocabulary} colours"
    print(f"wrote {settings['destination']}: {described}, {config.positions} positions, {config.classes or 'no'} classes")
    if convert not in (hub.publish, export):
        following = "sample" if config.causal else "evaluate"
        print(f"next: python -m igpt_jax.{following} --checkpoint={settings['destination']}")


if __name__ == "__main__":
    _main()
