"""The one error that the command line shows without a traceback."""


class LabError(Exception):
    """Says what is wrong, the value found, and how to mend it."""
