"""Sentences for what may be meant: the log has each of them once a run, whatever the number of steps that find it."""

import logging

from misc.files import look

log = logging.getLogger(__name__)


def notice(sentence: str) -> None:
    """Tell the log, unless this run has been told before."""
    look.remembered(("notice", sentence), lambda: log.info("notice: %s", sentence))
