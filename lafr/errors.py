"""The one exception that means: the user can fix this."""


class InputError(ValueError):
    """Wrong input, missing file or impossible setting; its one-line message says what and how to fix it.

    The scripts print it without a traceback and exit with code 1.
    """
