"""Stripe's idempotent requests, as a layer around an aiohttp application that speaks Stripe's API.

For a POST with an `Idempotency-Key`, status and body of the first response are kept and given again, with
`Idempotent-Replayed: true`. The same key with another endpoint or other parameters gets a 400 of type
`idempotency_error`; the same key while its first request still runs, a 409. Keys belong to an API key, have at most 255
characters, and are forgotten after 24 hours. Nothing is kept of a request that was not carried out, because it failed
validation or authentication.

Source: Stripe's API reference, "Idempotent requests" and "Error codes".
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

__all__ = ["Handler", "IdempotentRequests", "stripe_error"]

_MAX_KEY_CHARS = 255
_KEEP_KEYS_S = 24 * 3600.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """The first request under a key. `response` is None while it runs."""

    fingerprint: str
    at_s: float
    response: tuple[int, bytes] | None


class IdempotentRequests:
    """Remembers first responses, in memory. `now`: seconds of a clock that never goes back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kept: dict[tuple[str, str], _Kept] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a repeated request from memory; pass all others on."""
        key = request.headers.get("Idempotency-Key")
        if request.method != "POST" or key is None:
            return await handler(request)
        if len(key) > _MAX_KEY_CHARS:
            return stripe_error(400, "idempotency_error", f"Idempotency keys have at most {_MAX_KEY_CHARS} characters.")
        owner = (request.headers.get("Authorization", ""), key)
        fingerprint = hashlib.sha256(f"{request.path}\n".encode() + await request.read()).hexdigest()
        if (first := self._first_under(owner)) is not None:
            return _repeat(first, fingerprint, key)
        self._keep(owner, fingerprint, None)
        answered: tuple[int, bytes] | None = None
        try:
            response = await handler(request)
            if isinstance(response, web.Response) and isinstance(response.body, bytes) and _was_executed(response):
                answered = (response.status, response.body)
            return response
        finally:
            if answered is None:
                del self._kept[owner]
            else:
                self._keep(owner, fingerprint, answered)

    def _keep(self, owner: tuple[str, str], fingerprint: str, response: tuple[int, bytes] | None) -> None:
        self._kept[owner] = _Kept(fingerprint=fingerprint, at_s=self._now(), response=response)

    def _first_under(self, owner: tuple[str, str]) -> _Kept | None:
        first = self._kept.get(owner)
        if first is not None and first.response is not None and self._now() - first.at_s > _KEEP_KEYS_S:
            del self._kept[owner]
            return None
        return first


def stripe_error(status: int, kind: str, message: str, code: str | None = None) -> web.Response:
    """Make an error as Stripe words it."""
    error = {"type": kind, "message": message} | ({"code": code} if code else {})
    return web.Response(status=status, text=json.dumps({"error": error}), content_type="application/json")


def _was_executed(response: web.Response) -> bool:
    """Whether the endpoint began its work: it did if it succeeded, broke down, or had a card declined (402)."""
    return response.status < 400 or response.status == 402 or response.status >= 500


def _repeat(first: _Kept, fingerprint: str, key: str) -> web.Response:
    if first.fingerprint != fingerprint:
        message = f"Idempotency key {key} was first used with another endpoint or other parameters."
        return stripe_error(400, "idempotency_error", message)
    if first.response is None:
        message = f"Idempotency key {key} is in use by a request in progress."
        return stripe_error(409, "idempotency_error", message, "idempotency_key_in_use")
    status, body = first.response
    headers = {"Idempotent-Replayed": "true"}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
