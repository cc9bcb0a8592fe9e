"""Write a run's weights and settings into one .safetensors file, which load_model, --init and other programs read.

python scripts/export.py NAME OUT.safetensors          averaged weights of results/NAME
python scripts/export.py NAME OUT.safetensors --raw    those that the optimizer was at
python scripts/export.py NAME OUT.safetensors --half   in float16: half the size, three decimal digits
python scripts/export.py NAME --released DIR           for the released program: a run in its format
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

from i2sb.errors import FileError, UserError
from i2sb.parsing import expand_homes
from i2sb.restore import RestorationModel, load_model
from i2sb.storage.checkpoint import averaged_weights
from i2sb.storage.exported import Exported, write_export
from i2sb.storage.released import check_expressible, check_place, is_released, write_released
from i2sb.storage.runs import read_run, read_run_config
from i2sb.tensor_files import check_finite


def export(run_dir: Path, out: Path, *, raw: bool, overwrite: bool, half: bool = False, network: str = "") -> None:
    """Write the weights of a run. Raises UserError if the run cannot be read or the file exists already."""
    model = load_model(run_dir, ema=not raw, network=network)
    exported = pack(model, run_dir, averaged=not raw, half=half)
    write_export(out, exported, overwrite=overwrite)
    print(f"{out}: {'raw' if raw else 'averaged'} weights of {run_dir} after {model.iteration} iterations")


def pack(model: RestorationModel, run_dir: Path, *, averaged: bool, half: bool) -> Exported:
    """Return what a file is to hold of a model, and of the regression that it begins at, if it does."""
    weights = {name: tensor.detach() for name, tensor in model.network.state_dict().items()}
    if half:
        weights = {name: tensor.half() for name, tensor in weights.items()}
        beyond = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if beyond:
            raise UserError("half", None, f"{beyond[0]} of {run_dir} is beyond what float16 can hold; leave it out")
    mean = None if model.mean is None else pack(model.mean, run_dir, averaged=True, half=half)
    return Exported(weights, model.config, model.iteration, averaged=averaged, mean=mean)


def export_released(run_dir: Path, out: Path, *, overwrite: bool) -> None:
    """Write a run in the released program's format: its weights, raw and averaged, optimizer and settings.

    Raises UserError if the run cannot be read, the released program could not express it, or `out` holds a run already.
    """
    if is_released(run_dir):
        raise FileError(run_dir, "is a run of the released program already; copy it")
    if not run_dir.is_dir():
        raise FileError(run_dir, "there is no such run")
    config = read_run_config(run_dir)
    try:
        check_expressible(config)
    except UserError as error:
        raise error.inside(run_dir / "config.yaml") from None
    check_place(out, overwrite=overwrite)
    _, file, state = read_run(run_dir)
    for weights in (state["net"], averaged_weights(state, file)):
        check_finite(weights, file)
    write_released(out, config, state)
    print(f"{out}: {run_dir} after {state['progress']['iteration']} iterations, as the released program keeps it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the run in --results-dir")
    parser.add_argument("out", type=Path, nargs="?", help="file to write")
    parser.add_argument("--released", type=Path, metavar="DIR", help="folder for latest.pt and options.pkl instead")
    parser.add_argument("--raw", action="store_true", help="the raw weights instead of the averaged ones")
    parser.add_argument("--half", action="store_true", help="write float16, which is read as float32 again")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--network", default="", help="the run's, as for sample.py")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of all runs")
    options = argparse.Namespace(**expand_homes(vars(parser.parse_args())))
    with report_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError naming what is wrong."""
    run_dir = options.results_dir / options.name
    if (options.out is None) == (options.released is None):
        raise UserError("", None, "give either a file to write, or a folder with `released`")
    if options.released is None:
        export(
            run_dir,
            options.out,
            raw=options.raw,
            overwrite=options.overwrite,
            half=options.half,
            network=options.network,
        )
        return
    for name in ("raw", "half", "network"):
        if getattr(options, name):
            raise UserError(
                name, None, "leave it out; a released run has raw and averaged weights of ADM-256 in float32"
            )
    export_released(run_dir, options.released, overwrite=options.overwrite)


if __name__ == "__main__":
    main()
