"""Errors as huggingface_hub and datasets raise them."""

from types import SimpleNamespace

from huggingface_hub.errors import HfHubHTTPError


def refused(status: int, kind=HfHubHTTPError, says: str | None = None) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error = kind(f"{status} Client Error.\n\nat https://huggingface.co/x?sig=abc", response=response)
    error.server_message = says
    return error


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def masked(error: Exception, context: Exception) -> Exception:
    """`raise error from None`, which is how datasets hides what happened."""
    error.__context__, error.__suppress_context__ = context, True
    return error
