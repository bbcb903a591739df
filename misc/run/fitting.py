"""Batches that the memory does not take: half as large, until one fits."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from misc.run.limits import OneTooLarge, is_of_gpu, lacks_memory
from misc.run.loaders import places

Item, Result = TypeVar("Item"), TypeVar("Result")

log = logging.getLogger(__name__)


class Fitting:
    """How many parts of a batch run at once: as many as were asked for, and half of them whenever they don't fit.

    What did not fit is not tried again: the next batches start with what did.
    """

    def __init__(self, most: int, *, parts: str) -> None:
        """At most `most` parts of up to 512 x 512 pixels, larger ones are fewer; `parts`: what they are called."""
        self._most, self._parts = most, parts

    def run(self, work: Callable[[int], Result], n_parts: int, *, size: tuple[int, int], example: str | Path) -> Result:
        """`work(n)`, which takes `n_parts` parts, `n` at once; called again with fewer if the memory does not suffice.

        Args:
            size: (H, W) of the images, all the same.
            example: the file of one of them, for the message.

        Raises `OneTooLarge`, which `misc.run.limits.limits_told` makes a sentence of, if not even one part fits.
        """
        while True:
            at_once = max(1, min(self._most // places(size), n_parts))
            try:
                return work(at_once)
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                if at_once == 1:
                    raise OneTooLarge(size, example) from error
                memory = "GPU memory" if is_of_gpu(error) else "memory"
            # Outside of `except`, whose error keeps the tensors of the failed batch
            self._most = at_once // 2 * places(size)
            torch.cuda.empty_cache()
            # An event rather than a finding: told each time, in whichever step it happens
            log.info("notice: no %s for %d %s at once; going on with %d", memory, at_once, self._parts, at_once // 2)

    def each(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result]],
        items: Sequence[Item],
        *,
        size: tuple[int, int],
        example: str | Path,
    ) -> list[Result]:
        """What `function` gives for each of the items, which it takes in batches; the rest as in `run`."""

        def work(at_once: int) -> list[Result]:
            starts = range(0, len(items), at_once)
            return [result for start in starts for result in function(items[start : start + at_once])]

        return self.run(work, len(items), size=size, example=example)


@contextmanager
def one_image(size: tuple[int, int], path: str | Path) -> Iterator[None]:
    """For work on an image of (H, W) that has no batches: raises `OneTooLarge` if the memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise OneTooLarge(size, path) from error
