"""A local stand-in for Stripe's API, for demonstrations and tests.

    python -m cuebook.examples.support.stripe_standin --port 0

prints its address once it answers, for example http://127.0.0.1:40213. The objects and their HTTP interface are
localstripe's; everything is in memory and gone with the process. Three things that the desk relies on are missing there
and are added here:

- **Idempotent requests**, see `idempotent_requests`.
- **No refund beyond the payment.** A charge that is refunded in full refuses with `charge_already_refunded`, and no
  refund may exceed what is left. Source: Stripe's API reference, "Create a refund".
- **Faults on order.** `POST /_standin/faults` with `{"payment_intent": "pi_...", "kind": ..., "times": 1}` makes the
  next refunds of that payment go wrong: `unavailable` answers 503 and does nothing; `lost_response` does the work and
  then drops the connection. Posting again sets the count anew.

localstripe is licensed under the GPL, version 3 or later. Only this module imports it, and the agents reach it over
HTTP alone.
"""

import argparse
import asyncio
import signal
from dataclasses import dataclass
from typing import Literal, cast

from aiohttp import web
from localstripe.resources import Charge, store
from localstripe.server import app as localstripe_app

from cuebook.examples.support.idempotent_requests import Handler, IdempotentRequests, stripe_error

__all__ = ["StandIn", "serve"]

_REFUNDS = "/v1/refunds"


@dataclass(slots=True)
class _Fault:
    kind: Literal["unavailable", "lost_response"]
    times: int


class StandIn:
    """What the stand-in knows beyond localstripe's objects: faults by payment intent, refunded cents by charge."""

    def __init__(self) -> None:
        self._idempotent_requests = IdempotentRequests()
        self._refunded_cents: dict[str, int] = {}
        self._faults: dict[str, _Fault] = {}

    def application(self) -> web.Application:
        """Return localstripe's application with our layers around it. It exists once per process."""
        store.dump_to_disk = lambda: None  # it would write all objects to a file in /tmp at every change
        app = cast(web.Application, localstripe_app)
        # The first is the outermost: a fault strikes whether or not the answer would have been a repeated one.
        app.middlewares[:0] = [self._faulty, self._idempotent_requests.middleware, self._within_the_payment]
        app.router.add_post("/_standin/faults", self._set_fault)
        return app

    @web.middleware
    async def _faulty(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = self._faults.get(await _payment_intent(request)) if _is_refund(request) else None
        if fault is None or fault.times == 0:
            return await handler(request)
        fault.times -= 1
        if fault.kind == "unavailable":
            return stripe_error(503, "api_error", "Stripe is unavailable for a moment.")
        response = await handler(request)
        if request.transport is not None:
            request.transport.abort()
        return response

    @web.middleware
    async def _within_the_payment(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        charge = await _charge(request) if _is_refund(request) else None
        if charge is None:
            return await handler(request)
        wanted = (await request.post()).get("amount")
        if not isinstance(wanted, str | None) or (wanted is not None and not wanted.isdecimal()):
            return await handler(request)  # not a number: localstripe's validation says so
        left = charge.amount - self._refunded_cents.get(charge.id, 0)
        if left == 0:
            message = "Charge has already been refunded."
            return stripe_error(400, "invalid_request_error", message, "charge_already_refunded")
        amount = left if wanted is None else int(wanted)
        if amount > left:
            message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})."
            return stripe_error(400, "invalid_request_error", message)
        response = await handler(request)
        if response.status == web.HTTPOk.status_code:
            self._refunded_cents[charge.id] = charge.amount - left + amount
        return response

    async def _set_fault(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        self._faults[wanted["payment_intent"]] = _Fault(wanted["kind"], int(wanted["times"]))
        return web.Response(status=204)


async def serve(port: int) -> None:
    """Answer on the loopback address until SIGINT or SIGTERM, and print the address. Port 0 takes a free one."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(StandIn().application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound = runner.addresses[0][:2]
        print(f"http://{host}:{bound}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def _is_refund(request: web.Request) -> bool:
    return request.method == "POST" and request.path == _REFUNDS


async def _payment_intent(request: web.Request) -> str:
    return str((await request.post()).get("payment_intent", ""))


async def _charge(request: web.Request) -> Charge | None:
    """Return the charge that a refund is about, or None when there is no such thing; then localstripe says so."""
    named = (await request.post()).get("charge")
    if isinstance(named, str):
        return store.get(f"charge:{named}")
    intent = store.get(f"payment_intent:{await _payment_intent(request)}")
    return intent.latest_charge if intent is not None else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A local stand-in for Stripe's API.")
    parser.add_argument("--port", type=int, default=8420, help="0 takes a free one")
    asyncio.run(serve(parser.parse_args().port))
