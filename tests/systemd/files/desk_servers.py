"""PostgreSQL and the stand-in for Stripe, with the support desk's orders, as one unit of Type=notify."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cuebook.cli.dev.support_desk import support_desk
from cuebook.cli.units.sd_notify import notify
from cuebook.embedded.postgres import postgres


async def main() -> None:
    async with (
        postgres(Path("/var/lib/desk"), port=25432, durable=False) as server,
        support_desk(server.url, env={}, say=lambda name, line: print(name, line, file=sys.stderr)) as desk,
    ):
        await desk.prepare()
        Path("/run/desk").mkdir(exist_ok=True)
        Path("/run/desk/database-url").write_text(server.url)
        Path("/run/desk/environment").write_text(
            "".join(f"{name}={value}\n" for name, value in desk.own_environment.items())
        )
        notify("READY=1")
        await asyncio.Event().wait()


asyncio.run(main())
