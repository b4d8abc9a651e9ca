"""Failures as OpenAI's API reports them."""

from __future__ import annotations

from edgec.errors import EdgecError

_INVALID = "invalid_request_error"
# edgec's code -> (status, OpenAI's code); others are the server's fault
_STATUS = {
    "EC1001": (400, "invalid_value"),
    "EC1608": (400, "context_length_exceeded"),
    "EC1702": (400, "invalid_template"),
    "EC1704": (400, "invalid_schema"),
    "EC1601": (400, "invalid_value"),
    "EC1603": (400, "invalid_value"),
    "EC1604": (400, "invalid_value"),
    "EC1605": (400, "invalid_value"),
    "EC1606": (503, "out_of_memory"),
}


class ApiError(Exception):
    """`status` is HTTP's; `param` names the field of the request that is at fault; `headers` are added to the answer."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, headers=None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict:
        kind = _INVALID if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @classmethod
    def of(cls, error: EdgecError) -> ApiError:
        status, code = _STATUS.get(error.code, (500, error.code))
        return cls(status, str(error), code=code, param=error.where if status == 400 else None)


def invalid(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
