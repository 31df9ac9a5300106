"""The endpoints for responses that are kept: they are shown, and forgotten."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from runtime.gateway.responses import NotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

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
            body = do(request.path_params["response_id"])
        except NotKeptError as exc:
            status, problem = self._responses.error(exc)
            return JSONResponse(problem, status_code=status)
        # In ASCII: what it repeats of the request may hold half a character, which UTF-8 cannot.
        return Response(json.dumps(body), media_type="application/json")
