"""Names of models, as callers see them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.engines.base import Endpoint

_NONCE = re.compile(r"~[0-9a-f]{12}\Z")


def public_name(endpoint: Endpoint) -> str:
    """The name of an endpoint's model; the same after a restart.

    Engines that have no other place for it carry the instance's nonce in the model's name.
    """
    return _NONCE.sub("", endpoint.model)
