"""How two sets of features overlap, judged by nearest neighbours: precision and recall, density and coverage.

The table of metrics, which the command line reads, imports this file: torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# How far a feature reaches: as far as its k-th nearest of the same set, itself left out. As published.
PRECISION_K, DENSITY_K = 3, 5
_ROWS = 1024  # features compared at once with all others: ten thousand others take 84 MB


class Overlap(NamedTuple):
    """precision, recall, coverage: shares from 0 to 1; density: 0 or more, about 1 where the sets are alike."""

    precision: float
    recall: float
    density: float
    coverage: float


def find_overlap(features: Tensor, reference: Tensor) -> Overlap:
    """Compare features [N, D] with the reference's [M, D], N of PRECISION_K + 1 and M of DENSITY_K + 1 at least.

    Precision and recall are Kynkäänniemi et al.'s (2019, eq. 1 and 2) with the 3rd nearest neighbour: the share of
    features within reach of one of the reference, and of the reference within reach of one of the features. Density and
    coverage are Naeem et al.'s (2020, eq. 3 and 4) with the 5th, closer than which a neighbour must lie, as in their
    program: the number of the reference's that a feature is within reach of, in fifths, on average; the share of the
    reference that have a feature within their reach.
    """
    import torch

    features, reference = features.double(), reference.double()
    (own_reach,) = _find_reaches(features, PRECISION_K)
    precision_reach, density_reach = _find_reaches(reference, PRECISION_K, DENSITY_K)
    precise, dense = 0, 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(recalled)
    for part, reach in zip(features.split(_ROWS), own_reach.split(_ROWS), strict=True):
        squared = _squared_distances(part, reference)
        precise += int((squared <= precision_reach).any(dim=1).sum())
        recalled |= (squared <= reach[:, None]).any(dim=0)
        dense += int((squared < density_reach).sum())
        covered |= (squared < density_reach).any(dim=0)
    return Overlap(
        precision=precise / len(features),
        recall=recalled.double().mean().item(),
        density=dense / (DENSITY_K * len(features)),
        coverage=covered.double().mean().item(),
    )


def _find_reaches(features: Tensor, *ks: int) -> list[Tensor]:
    """Return, for each k, the squared distance of every feature from its k-th nearest other, [N]."""
    import torch

    nearest = [
        # The nearest of all is the feature itself.
        _squared_distances(part, features).topk(max(ks) + 1, largest=False).values
        for part in features.split(_ROWS)
    ]
    return [torch.cat(nearest)[:, k] for k in ks]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x − y|² of x [N, D] and y [M, D] in float64, [N, M]; zero where it is below rounding error."""
    import torch

    # |x − y|² = |x|² + |y|² − 2 xᵀy, of whose terms D are added up: of equal features they leave a rest.
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    squared = lengths - 2 * x @ y.T
    return squared.where(squared > x.shape[1] * torch.finfo(x.dtype).eps * lengths, 0.0)
