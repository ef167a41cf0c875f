"""Every error that a user can meet, and the exit code of the scripts for it."""


class DataError(ValueError):
    """The data set cannot be used as asked; the message says what was found and what to change."""


class HubError(RuntimeError):
    """A finished model could not be uploaded; the message says why, and how to do it later."""
