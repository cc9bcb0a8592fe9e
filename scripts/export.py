"""Write a run's weights and settings into one .safetensors file, which load_model, --init and other programs read.

python scripts/export.py NAME OUT.safetensors          averaged weights of results/NAME
python scripts/export.py NAME OUT.safetensors --raw    those that the optimizer was at
python scripts/export.py NAME OUT.safetensors --half   in float16: half the size, three decimal digits
python scripts/export.py NAME --released DIR           for the released program: a run in its format
python scripts/export.py NAME --push hf:ORG/NAME --license apache-2.0 --data "what it was trained on"
                                                       to the Hugging Face Hub, with a page that describes it
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

from i2sb.errors import FileError, UserError
from i2sb.parsing import expand_homes
from i2sb.restore import RestorationModel, load_model
from i2sb.storage.checkpoint import averaged_weights
from i2sb.storage.exported import Exported, write_export
from i2sb.storage.hub import CARD, WEIGHTS, find_taken, make_repository, parse_name, push_files
from i2sb.storage.model_card import write_card
from i2sb.storage.released import check_expressible, check_place, is_released, write_released
from i2sb.storage.runs import Source, find_source, read_run, read_run_config
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


def push(source: Source, options: argparse.Namespace) -> None:
    """Put weights and their page into a repository of the Hub; says first what goes where.

    Raises UserError if that cannot be done, or if the repository has such files already and they may not be replaced.
    """
    name = parse_name(options.push)
    if name.revision:
        raise UserError("push", options.push, "files go to the main branch; leave out what follows the @")
    for setting, what in (("license", "such as apache-2.0, as the Hub calls it"), ("data", "what it was trained on")):
        if not getattr(options, setting):
            raise UserError(setting, None, f"is missing, which the page is to tell: {what}")
    model = load_model(source.weights, ema=not options.raw, network=options.network)
    exported = pack(model, source.weights, averaged=not options.raw, half=options.half)
    card = write_card(exported, name, options.license, options.data, source.folder)
    taken = find_taken(name)
    if taken and not options.overwrite:
        raise UserError("push", name, f"holds {' and '.join(taken)} already; replace them with `overwrite`")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS
        write_export(file, exported)
        print(f"to {name}, {'a private' if options.private else 'a public'} repository unless there is one already:")
        kind = "raw" if options.raw else "averaged"
        told = f"{kind} weights of {source.weights} after {model.iteration} iterations, with all its settings"
        print(f"  {WEIGHTS}  {file.stat().st_size / 1e6:.1f} MB, {told}")
        print(f"  {CARD}  its page, which says: license {options.license}; trained on {options.data}", flush=True)
        make_repository(name, private=options.private)
        print(push_files(name, {CARD: card.encode(), WEIGHTS: file}, f"Weights after {model.iteration} iterations"))


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
    parser.add_argument("name", help="run in --results-dir, or a file of weights, as --ckpt of sample.py")
    parser.add_argument("out", type=Path, nargs="?", help="file to write")
    parser.add_argument("--released", type=Path, metavar="DIR", help="folder for latest.pt and options.pkl instead")
    parser.add_argument("--push", default="", metavar="hf:ORG/NAME", help="repository of the Hugging Face Hub instead")
    parser.add_argument("--license", default="", help="of the weights that are pushed, as the Hub calls it")
    parser.add_argument("--data", default="", help="what they were trained on, in words")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--raw", action="store_true", help="the raw weights instead of the averaged ones")
    parser.add_argument("--half", action="store_true", help="write float16, which is read as float32 again")
    parser.add_argument("--overwrite", action="store_true", help="replace the file, or files, if there are such")
    parser.add_argument("--network", default="", help="the run's, as for sample.py")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of all runs")
    options = argparse.Namespace(**expand_homes(vars(parser.parse_args())))
    with report_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError naming what is wrong."""
    if sum(map(bool, (options.out, options.released, options.push))) != 1:
        raise UserError("", None, "give a file to write, or a folder with `released`, or a repository with `push`")
    for name in ("license", "data", "private"):
        if getattr(options, name) and not options.push:
            raise UserError(name, None, "leave it out; it is for `push`")
    source = find_source(options.name, options.results_dir)
    if options.push:
        push(source, options)
        return
    if options.out:
        export(
            source.weights,
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
    export_released(source.weights, options.released, overwrite=options.overwrite)


if __name__ == "__main__":
    main()
