"""What a step of the chain says of itself, in its own file, beside `check` and `run`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """The declaration of a step, `STEP` in its module; its switch in `Config` gives its place in the order.

    Attributes:
        name: that of its switch, without `_pass`.
        description: what it does, on one line: that of its switch, of the log and of the README.
        reads: flags that name what it reads: data, lists, folders, weights and, beside these, their networks.
        writes: flags that name what it writes.
        flags: settings that determine the result, given what is read.
        shared: whether the processes that torchrun starts share its work; else the first process alone does it.
    """

    name: str
    description: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    flags: tuple[str, ...] = ()
    shared: bool = False
