"""What can go wrong between this node and the API server; inside this package alone, others see :mod:`errors`."""

from __future__ import annotations


class Unreachable(Exception):
    """There is no answer: no connection, no credentials, an answer cut short. The words name the cause."""


class Refused(Exception):
    """The API server answered with something other than success.

    ``status`` is the HTTP code, ``reason`` the Status object's word for it ("NotFound", "AlreadyExists", …), ``after``
    the seconds of Retry-After, None where it names none.
    """

    def __init__(self, status: int, reason: str, message: str, after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.after = after
