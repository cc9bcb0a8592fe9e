"""What `--formulation` can be, known without torch: where each is written, and which settings it uses."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A formulation.

    location: its class, "module:Class", imported when it is built. uses: the settings it uses among those that not
    every formulation does; a setting that stands in no row is used by all.
    """

    location: str
    uses: tuple[str, ...]


_OF_A_BRIDGE = (
    "interval",
    "beta_max",
    "t0",
    "T",
    "ot_ode",
    "start_share",
    "cond_x1",
    "add_x1_noise",
    "hole_fill",
    "x1_from",
)

FORMULATIONS = {
    "bridge": Entry("i2sb.formulation:SchroedingerBridge", uses=_OF_A_BRIDGE),
    "student": Entry(
        "i2sb.distillation:Student",
        uses=(*_OF_A_BRIDGE, "distill", "nfe", "student_noise", "inner_updates", "degraded_data", "half_teacher"),
    ),
    "conditional_diffusion": Entry(
        "i2sb.baselines.formulations:ConditionalDiffusion",
        uses=("interval", "schedule", "start_share", "cond_x1", "add_x1_noise", "hole_fill"),
    ),
    "regression": Entry(
        "i2sb.baselines.formulations:Regression", uses=("regression_target", "cond_x1", "add_x1_noise", "hole_fill")
    ),
    "diffusion": Entry(
        "i2sb.baselines.formulations:UnconditionalDiffusion", uses=("interval", "schedule", "start_share")
    ),
}


def is_used(setting: str, formulation: str) -> bool:
    """Say whether a formulation uses a setting."""
    selective = any(setting in entry.uses for entry in FORMULATIONS.values())
    return not selective or setting in FORMULATIONS[formulation].uses
