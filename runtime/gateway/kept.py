"""The endpoints for responses that are kept: they are shown, and forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from runtime.gateway.responses import NotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from runtime.gateway.responses import Responses


class KeptResponses:
    """What may be done with a response by its id."""

    def __init__(self, responses: Responses) -> None:
        self._responses = responses

    async def get(self, request: Request) -> Response:
        """Show it."""
        return self._answer(request, self._responses.kept)

    async def delete(self, request: Request) -> Response:
        """Forget it."""
        return self._answer(request, self._responses.forget)

    def _answer(self, request: Request, do: Callable[[str], Mapping[str, object]]) -> Response:
        try:
            return JSONResponse(do(request.path_params["response_id"]))
        except NotKeptError as exc:
            status, body = self._responses.error(exc)
            return JSONResponse(body, status_code=status)
