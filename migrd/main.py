"""migrd: read the configuration, prove it, run the daemon."""

from __future__ import annotations

import argparse
import asyncio
import sys
from importlib import metadata
from pathlib import Path

import structlog

from agents.listening import tell_end
from agents.log import set_up
from agents.toml_config import ConfigError
from migrd.config import DEFAULT_PATH, load_daemon
from migrd.daemon import JOURNAL_FILE, serve
from migrd.journal_file import raise_epoch
from migrd.ports import JournalError

EXIT_FAILED = 1
EXIT_USAGE = 2
MAX_EPOCH = 1 << 21  # event numbers are epoch x 2^32, exact in JSON readers up to here


def main() -> None:
    """Console script. 0 after SIGTERM, 1 when it cannot go on (systemd starts it again), 2 bad config."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """See main."""
    version = metadata.version("migrd")
    parser = argparse.ArgumentParser(
        prog="migrd", description="Live-migration and storage-replication orchestrator for libvirt hosts."
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help=f"default: {DEFAULT_PATH}")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument(
        "--raise-epoch",
        type=_epoch,
        metavar="N",
        help="after a journal was lost or restored: let this daemon be heard again by agents that have "
        "obeyed epoch N (/readyz names it); only while no migrd runs on this journal, nor any other",
    )
    parser.add_argument("--version", action="version", version=f"migrd {version}")
    options = parser.parse_args(argv)
    try:
        loaded = load_daemon(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if options.check:
        print(f"{options.config}: good, {len(loaded.config.hosts)} hosts")
        return 0
    if options.raise_epoch is not None:
        return _raise_epoch(loaded.config.state.dir / JOURNAL_FILE, options.raise_epoch)
    set_up(options.log_level)
    log = structlog.get_logger("migrd")
    try:
        asyncio.run(serve(loaded, version))
    except (OSError, JournalError) as error:
        log.error("daemon cannot run", error=str(error))  # noqa: TRY400 - the message says all
        return EXIT_FAILED
    except ExceptionGroup as group:
        tell_end(log, "daemon", group)
        return EXIT_FAILED
    return 0


def _raise_epoch(journal: Path, epoch: int) -> int:
    try:
        raise_epoch(journal, epoch)
    except JournalError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    print(f"{journal}: the next start will have epoch {epoch + 1}")
    return 0


def _epoch(text: str) -> int:
    """argparse names the option and the value when this raises ValueError."""
    number = int(text)
    if not 0 < number < MAX_EPOCH:
        raise ValueError
    return number


if __name__ == "__main__":
    main()
