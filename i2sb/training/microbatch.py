"""`--microbatch auto`: as many images at once as the memory takes, found before the first update."""

from collections.abc import Callable

import torch

from i2sb.distributed import World
from i2sb.errors import UserError


def find_microbatch(share: int, fits: Callable[[int], bool], world: World) -> int:
    """Return how many images each process is to take at once, the same on all of them.

    share: a process's images of a batch. fits: whether so many can be computed at once; where they cannot, on any
    process, half as many are tried (or the next divisor of the share), so that the batch stays what it was.
    Raises UserError if not even one image fits.
    """
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    while sizes:
        size = sizes[0]
        (too_many,) = world.any(not fits(size))
        if not too_many:
            return size
        sizes = [smaller for smaller in sizes if smaller <= size // 2]
    raise UserError("microbatch", "auto", "not one image fits into memory: try `grad_checkpoint`, or smaller images")


def fits_gpu(rehearse: Callable[[], object]) -> bool:
    """Say whether `rehearse` ends without a GPU whose memory is full."""
    try:
        rehearse()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
