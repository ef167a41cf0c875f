"""Every error that a user can meet, and the exit code of the scripts for it."""


class DataError(ValueError):
    """The data set cannot be used as asked; the message says what was found and what to change."""


class HubError(RuntimeError):
    """A finished model could not be uploaded; the message says why, and how to do it later."""


class ImageDecodingError(ValueError):
    """An image of the data set cannot be decoded. The message says which row and why.

    Attributes:
        kind: one of KINDS.
        detail: path, if there is one, and reason; at most 200 characters, and the same in every process.
    """

    def __init__(self, message: str, kind: str = "corrupt", detail: str = ""):
        # Between processes an exception travels as its class, `args` and `__dict__`; `args` has to be the message.
        super().__init__(message)
        self.kind, self.detail = kind, detail
