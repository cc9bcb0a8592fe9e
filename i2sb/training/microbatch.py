"""`--microbatch auto`: as many images at once as the GPU's memory takes, found before the first update."""

from __future__ import annotations

from collections.abc import Callable

import torch

from i2sb.distributed import World
from i2sb.errors import UserError

# Without a GPU, whose memory says by itself that it is full: the published number.
ON_CPU = 2


def find_microbatch(share: int, rehearse: Callable[[int], object], world: World) -> int:
    """Return how many images each process is to take at once, the same on all of them.

    share: a process's images of a batch. rehearse: computes a forward and a backward pass with so many images; where it
    raises torch.cuda.OutOfMemoryError, on any process, half as many are tried (or the next divisor of the share), so
    that the batch stays what it was. Raises UserError if not even one image fits.
    """
    fitting = [size for size in range(share, 0, -1) if share % size == 0]
    if world.device.type == "cpu":
        return next(size for size in fitting if size <= ON_CPU)
    while fitting:
        size = fitting[0]
        (too_many,) = world.any(not _fits(size, rehearse))
        if not too_many:
            return size
        fitting = [smaller for smaller in fitting if smaller <= size // 2]
    raise UserError(
        "microbatch", "auto", "not even one image fits into the GPU's memory: try `grad_checkpoint`, or smaller images"
    )


def _fits(size: int, rehearse: Callable[[int], object]) -> bool:
    try:
        rehearse(size)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
