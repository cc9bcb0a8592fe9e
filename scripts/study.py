"""Compare formulations at equal effort: train each on each task, restore the held-out split, score, draw.

    python scripts/study.py configs/studies/demo.yaml [--dry-run]

For every task, formulation and seed of STUDY.yaml there is a run, and for every sampler and number of network
evaluations a folder of restored images with its scores. Running the same command again goes on where it was, whatever
stopped it. Leaves in the study's folder: the runs, results.json, results.csv, table.txt, plots/ and sheets/.
--dry-run times a few iterations and evaluations of every formulation and says how long all that is left will take.

STUDY.yaml holds, under these names:
    results_dir                folder for all that the study makes
    tasks                      of each: its name, and settings of train.py that are its own (the name is the
                               degradation, unless `corrupt` is given)
    formulations               of each: its name, and `train`, `sample` (settings of its own), `samplers` (default: all)
    train, sample, score       settings of train.py, sample.py and compute_metrices.py, the same for all
    seeds, nfe                 default: [0] and [1, 2, 5, 10, 20, 50, 100] network evaluations
    sheet_nfe, sheet_images    what the sheets show (default: 10 evaluations, 4 images)
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

from studies.cells import check_data, check_unchanged, do_cell, read_score
from studies.plan import Plan, make_plan
from studies.report import make_table, write_results
from studies.settings import Study, read_study
from studies.timing import estimate

from i2sb.errors import FileError


def run_study(study: Study, plan: Plan) -> None:
    """Do all cells that are left, then write tables and pictures."""
    if find_spec("matplotlib") is None:
        raise FileError(study.folder, "its plots need matplotlib: pip install -r scripts/requirements-demo.txt")
    check_data(plan)
    for cell in plan.cells:
        check_unchanged(cell)
    scores = {id(cell): read_score(cell, study) for cell in plan.cells}
    done = [score for score in scores.values() if score]
    print(make_table(study, plan, done))
    for number, cell in enumerate(plan.cells, 1):
        if scores[id(cell)] is not None:
            continue
        print(f"\n[{number}/{len(plan.cells)}] {', '.join(f'{k} {v}' for k, v in cell.key.items())}", flush=True)
        done.append(do_cell(cell, study))
        print(write_results(study.folder, study, plan, done), flush=True)
    write_results(study.folder, study, plan, done, pictures=True)
    print(f"{study.folder}: results.json, results.csv, table.txt, plots/ and sheets/ are up to date")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--dry-run", action="store_true", help="say how long it will take, from a short timing")
    options = parser.parse_args()
    with report_errors():
        study = read_study(options.study)
        plan = make_plan(study, options.study)
        if options.dry_run:
            print(estimate(study, plan))
        else:
            run_study(study, plan)


if __name__ == "__main__":
    main()
