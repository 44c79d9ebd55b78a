"""What can go wrong between a request and the engine. These errors know no HTTP status."""

from __future__ import annotations

from edgewise_agent.errors import AgentError


class ServingError(AgentError):
    """Base of serving's errors."""

    code = "serving"


class UnknownModelError(ServingError):
    """No such model, or not in that version, is active."""

    code = "unknown-model"


class BusyError(ServingError):
    """The model's queue is full."""

    code = "busy"


class RetiredError(ServingError):
    """This version has just been replaced; the model may be asked again."""

    code = "retired"


class RequestError(ServingError):
    """The request is not one that the model can be asked."""

    code = "bad-request"


class TooLargeError(ServingError):
    """The request is larger than this server takes."""

    code = "too-large"


class EncodingError(ServingError):
    """The request's content coding is unknown."""

    code = "content-coding"
