"""The one exception that is meant for a user's eyes."""


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what to do.

    Command lines print the message alone and exit with status 2; every other exception is a bug and keeps its trace.
    """
