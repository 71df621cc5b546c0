"""Errors as the API writes them: an object with message, type, param and code, under a fitting status."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request is answered with an error.

    Args:
        status: of the HTTP response.
        message: a sentence for a person.
        code: a word for a program.
        param: the part of the request that is wrong, if one is.
        retry_after: seconds after which another try may do better.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error for a request that is wrong."""
    return ApiError(400, message, code, param)


def unsupported(param: str, message: str | None = None) -> ApiError:
    """Return the error for a part of the API that this server does not have."""
    return bad_request(message or f"This server does not support {param}.", param, "unsupported_parameter")


def _type(status: int) -> str:
    names = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return names.get(status, "server_error" if status >= 500 else "invalid_request_error")
