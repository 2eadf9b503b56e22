"""Show a work directory as one HTML file: `python -m igpt_jax.report runs/digits`.

The file needs nothing beside it: curves of the loss, the learning rate, the gradient norm and the speed, the best evaluation, the time, the hardware, the
recipe, the palette, and the pictures and probes that other programs wrote. It says what is not there. A run that still trains, was stopped or is damaged is
shown as far as it goes. No device is used.
"""

from etils import epath

from igpt_jax.cli import Parser, prepare_folder, program
from igpt_jax.files import write_atomically
from igpt_jax.reporting.page import page
from igpt_jax.reporting.workdir import read


def main() -> None:
    """Run the program."""
    parser = Parser(prog="python -m igpt_jax.report", description=__doc__)
    parser.add_argument("workdir", help="work directory of quantize, train or finetune")
    parser.add_argument("--out", help="the HTML file to write; default: report.html in the work directory")
    arguments = parser.parse_args()
    found = read(arguments.workdir)
    out = epath.Path(arguments.out or epath.Path(arguments.workdir) / "report.html")
    prepare_folder(out.parent)
    text = page(found).encode()
    write_atomically(out, text)
    print(f"wrote {out}, {len(text) / 2**20:.1f} MiB: open it in a browser")


if __name__ == "__main__":
    program(main)
