"""migrd-agent: read the configuration, put the parts together, run."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from importlib import metadata
from pathlib import Path

import structlog

from agents.config import DEFAULT_PATH, AgentConfig, load_agent
from agents.daemon import serve
from agents.ledger import LedgerError
from agents.listening import tell_end
from agents.log import set_up
from agents.toml_config import ConfigError
from agents.wiring import real_parts

EXIT_FAILED = 1
EXIT_USAGE = 2


def main() -> None:
    """Console script. 0 after SIGTERM, 1 when it cannot go on (systemd starts it again), 2 bad config."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """See main."""
    parser = argparse.ArgumentParser(
        prog="migrd-agent",
        description="migrd's agent on one libvirt host: reports, and runs one step at a time.",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help=f"default: {DEFAULT_PATH}")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--version", action="version", version=f"migrd-agent {_version()}")
    options = parser.parse_args(argv)
    try:
        config, tls = load_agent(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if options.check:
        print(f"{options.config}: good")
        return 0
    set_up(options.log_level)
    log = structlog.get_logger()
    try:
        asyncio.run(_serve(config, tls))
    except (OSError, LedgerError) as error:
        log.error("agent cannot run", error=str(error))  # noqa: TRY400 - the message says all
        return EXIT_FAILED
    except ExceptionGroup as group:
        tell_end(log, "agent", group)
        return EXIT_FAILED
    return 0


async def _serve(config: AgentConfig, tls: ssl.SSLContext) -> None:
    await serve(config, tls, await real_parts(config, _version()))


def _version() -> str:
    return metadata.version("migrd")


if __name__ == "__main__":
    main()
