"""The regression that a bridge with `x1_from` begins at: found and checked."""

from __future__ import annotations

from pathlib import Path

from i2sb.config import TrainConfig
from i2sb.errors import UserError, require
from i2sb.network_sizes import check_image_size, is_own
from i2sb.storage.exported import Exported
from i2sb.storage.runs import read_other


def read_mean(config: TrainConfig, gone_on_with: Path | None, teacher: Exported | None = None) -> Exported | None:
    """Return the averaged weights of the regression that a run begins at; None if it begins at the degraded image.

    gone_on_with: the folder of the run that is resumed, which keeps them; None for a new run, whose `x1_from` names
    them, unless it is a student: then they are its teacher's. Raises UserError if there are none, or if they restore
    other images than the run is to.
    """
    mean = read_other("x1_from", config, gone_on_with) if teacher is None else teacher.mean
    if mean is not None:
        _check(mean.config, config)
    return mean


def _check(mean: TrainConfig, config: TrainConfig) -> None:
    """Raise UserError unless a regression with these settings can stand before the bridge of a run."""

    def must(holds: bool, found: str, right: str) -> None:
        require(holds, "x1_from", config.x1_from, f"{found}; {right}")

    is_regression = mean.formulation == "regression"
    must(is_regression, f"is a {mean.formulation}", "name a run trained with `formulation` regression")
    for setting in ("corrupt", "degradation_noise", "image_channels", "value_range", "hole_fill"):
        theirs, ours = getattr(mean, setting), getattr(config, setting)
        must(theirs == ours, f"was trained with `{setting}` {theirs}", f"this run has {ours}: both need the same")
    unnoisy = mean.cond_x1 or not mean.add_x1_noise
    must(unnoisy, "was trained with `add_x1_noise`", "name one that saw the degraded image as it is")
    must(not is_own(mean.network), f"has a network in Python ({mean.network})", "name one with a U-Net of this project")
    for side, setting in ((config.image_size, "image_size"), (config.restored_size, "eval_image_size")):
        try:
            check_image_size(mean.network, side, setting)
        except UserError as error:
            raise UserError(setting, side, f"{error.must} (of `x1_from` {config.x1_from})") from None
