"""What a Hub that refuses means, in a sentence."""

from json import JSONDecodeError

import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_mae_robust.hub.refusals import MODEL, refusal
from tests.hub.errors import chained, refused


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(401, GatedRepoError), "gated, and a token is needed"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated"), "is needed"),
        (DatasetNotFoundError("'a/b' is a gated dataset on the Hub. Visit ... to ask for access."), "has no access"),
        (refused(404, RevisionNotFoundError), "no such revision"),
        (DatasetNotFoundError("Revision 'v2' doesn't exist for dataset 'a/b' on the Hub."), "no such revision"),
        (refused(401, RepositoryNotFoundError), "no such data set"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "no such data set"),
        (refused(401), "does not accept the token"),
        (refused(403), "Access is refused"),
        (refused(404), "no such file"),
        (refused(400), "answers 400"),
    ],
)
def test_refusals_of_a_data_set_say_what_to_do(error, words):
    assert words in refusal(error, "a/b")
    assert words in refusal(chained(OSError("wrapped"), error), "a/b")


@pytest.mark.parametrize("error", [refused(503), TimeoutError(), OfflineModeIsEnabled("off"), ValueError("a bug")])
def test_of_a_data_set_other_errors_speak_for_themselves(error):
    assert refusal(error, "a/b") is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (refused(403, GatedRepoError), "a/b is gated: accept its terms on its page on the Hub, and log in with"),
        (refused(404, RevisionNotFoundError), "a/b has no such revision"),
        (refused(401, RepositoryNotFoundError), "the Hub knows no such token, or a/b cannot be seen without one: log"),
        (refused(404, RepositoryNotFoundError), "a/b is not on the Hub, or is private and not to be seen with this"),
        (refused(403, says="hf_secret is for reading"), "or to see it (the Hub says: *** is for reading): log in with"),
        (refused(403), "this token has no right to write to a/b, or to see it: log in with `hf auth login`"),
        (refused(400, says="no such licence"), "the Hub answered 400 for a/b (no such licence)"),
        (refused(404), "the Hub answered 404 for a/b"),
        (chained(RuntimeError("a large file"), refused(503)), "the Hub answered 503 for a/b, also when asked again"),
        (HTTPError("reset"), "the Hub cannot be reached for a/b (HTTPError): try later"),
        (JSONDecodeError("Expecting value", "<html>", 0), "the Hub cannot be reached for a/b (JSONDecodeError)"),
        (OfflineModeIsEnabled("off"), "offline mode is on: unset HF_HUB_OFFLINE"),
        (HFValidationError("Repo id must be in the form 'a/b'."), "Repo id must be in the form 'a/b'"),
    ],
)
def test_of_a_model_there_is_a_sentence_for_everything(error, sentence):
    assert sentence in refusal(error, "a/b", MODEL)
