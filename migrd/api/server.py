"""Where the surface listens: HTTPS, or plain HTTP on loopback or a unix socket when the config says so."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator

from aiohttp import web

from agents.listening import told_with
from migrd.api.listen import Listen

SHUTDOWN_S = 5.0
UNIX_SOCKET_MODE = 0o660


@contextlib.asynccontextmanager
async def serving(app: web.Application, listen: Listen, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Serve `app` while inside; yields the URL (port 0 becomes the one that was given).

    Raises ListenError when the address cannot be bound. On exit event streams are ended and running requests
    get SHUTDOWN_S.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        if listen.path is not None:
            with told_with("api.listen", f"unix:{listen.path}"):
                await web.UnixSite(runner, listen.path, ssl_context=tls).start()
                listen.path.chmod(UNIX_SOCKET_MODE)
            yield f"unix:{listen.path}"
        else:
            host = f"[{listen.host}]" if ":" in listen.host else listen.host
            with told_with("api.listen", f"{host}:{listen.port}"):
                await web.TCPSite(runner, listen.host, listen.port, ssl_context=tls).start()
            port = runner.addresses[0][1]
            yield f"{'https' if tls else 'http'}://{host}:{port}"
    finally:
        await runner.cleanup()
