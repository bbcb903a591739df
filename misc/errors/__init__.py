"""The exception for mistakes that the user can mend, and the one that follows from it in other processes."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

Arguments = ParamSpec("Arguments")

OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""System errors that say nothing of the file that is being read."""


class InputError(Exception):
    """Bad input: a flag, file, folder or image that the run can't use.

    The message is one sentence that names the file or flag, says what was expected and what to do.
    `run_sample.py` prints it without a traceback and exits with code 2.
    """

    problems: tuple[str, ...] = ()
    """The sentences of an error that tells of several problems at once."""


class FoundByOne(InputError):
    """Bad input that was found before the log began, and that this one of several processes is to tell."""


class ProcessLost(Exception):
    """Another process of the run has stopped: this one can't go on without it.

    Without a cause, the other one says why. With one, it is what PyTorch says of the connection.
    """


def first_three(names: list[str]) -> str:
    """`a, b, c, ...`: the first three of `names`, for messages about many files."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def message_of(error: InputError) -> str:
    """The sentence of an error, also when a loader's worker process has wrapped it in its own traceback.

    On one line, and without the control characters that names in files may hold.
    """
    return printable(str(error).rsplit("InputError: ", 1)[-1])


def printable(text: str) -> str:
    """`text` on one line, characters that a terminal would obey, or that are none, as `\\x1b` or `\\udcff`."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def reason_of(error: Exception) -> str:
    """What a library's error says, for use within a sentence: on one line, not long, never empty."""
    return printable(str(error))[:200] or type(error).__name__


def raise_if_of_the_machine(error: Exception, *, memory: bool = False) -> None:
    """Raise again what tells of a limit of the machine, for those who take any error for a damaged file.

    `memory`: memory that does not suffice counts, too; not where a damaged file can ask for any amount.
    """
    if (isinstance(error, OSError) and error.errno in OF_THE_MACHINE) or (memory and isinstance(error, MemoryError)):
        raise error


def raise_all(errors: list[InputError]) -> None:
    """Raise one `InputError` for all of these, each sentence once; nothing if there are none.

    One that is of several problems already counts as these.
    """
    sentences = tuple(dict.fromkeys(each for error in errors for each in error.problems or (message_of(error),)))
    if len(errors) == 1 or len(sentences) == 1:
        raise errors[0]
    if sentences:
        numbered = " ".join(f"({number}) {sentence}" for number, sentence in enumerate(sentences, start=1))
        error = InputError(f"{len(sentences)} problems: {numbered}")
        error.problems = sentences
        raise error


_gathered: ContextVar[list[InputError] | None] = ContextVar("_gathered", default=None)
"""The errors of the requirements in the innermost `told_together`."""


def requirement(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A check that raises `InputError`, but in a block of `told_together` lets the checks that follow be made as well.

    The functions that it calls raise as ever.
    """

    @wraps(function)
    def check(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        gathered = _gathered.get()
        token = _gathered.set(None)
        try:
            function(*args, **kwargs)
        except InputError as error:
            if gathered is None:
                raise
            gathered.append(error)
        finally:
            _gathered.reset(token)

    return check


@contextmanager
def told_together() -> Iterator[None]:
    """Raise one `InputError` at the end for all requirements of the block that failed, and for what ended it early."""
    gathered: list[InputError] = []
    token = _gathered.set(gathered)
    try:
        yield
    except InputError as error:
        gathered.append(error)
    except Exception:
        raise_all(gathered)  # from which it may follow: the error that is raised keeps it as its context
        raise
    finally:
        _gathered.reset(token)
    raise_all(gathered)
