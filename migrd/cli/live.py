"""How waiting looks: a progress bar per guest on a terminal, plain lines with the time elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from migrd.cli.fmt import cell, plain, seconds, size
from migrd.cli.render import headline, took_s
from migrd.cli.watch import Look, View
from migrd.operations import Operation, OperationState

PLAIN_EVERY_S = 10.0
MAX_BARS = 30  # a terminal has few lines; ended moves leave the bars for the scroll-back


def view_for(console: Console) -> View:
    return BarView(console) if console.is_terminal else LineView(console)


def fraction(operation: Operation) -> float:
    """How much of the memory is over there, 0 to 1. May fall: guests write while they move."""
    if operation.state is OperationState.DONE:
        return 1.0
    progress = operation.progress
    if progress is None or progress.memory_total_bytes <= 0:
        return 0.0
    left = progress.memory_remaining_bytes / progress.memory_total_bytes
    return min(1.0, max(0.0, 1.0 - left))


def numbers(operation: Operation) -> str:
    """12.0 MiB left, 50.0 MiB/s, dirties 3.0 MiB/s, round 2"""
    progress = operation.progress
    if progress is None:
        running = next((step for step in operation.steps if step.state == "running"), None)
        return f"{running.name} (try {running.attempt})" if running else str(operation.state)
    if progress.handing_over_s > 0:
        return f"paused for its switch-over for {seconds(progress.handing_over_s)}"
    return (
        f"{size(progress.memory_remaining_bytes)} left, {size(progress.bandwidth_bps)}/s, "
        f"dirties {size(progress.dirty_rate_bps)}/s, round {progress.iteration}"
    )


def result(operation: Operation) -> str:
    """web: h1 -> h2 done in 6.2 s, downtime 134 ms"""
    text = f"{operation.subject}: "
    if operation.source and operation.target:
        text += f"{operation.source} -> {operation.target} "
    text += str(operation.state)
    took = took_s(operation)
    text += f" in {seconds(took)}" if took is not None else ""
    text += f", downtime {operation.downtime_ms} ms" if operation.downtime_ms is not None else ""
    text += f": {operation.reason}" if operation.reason else ""
    return text


def settled(operation: Operation) -> bool:
    return operation.state.ended or operation.state is OperationState.PARKED


class BarView:
    """Live bars; what ends is printed once above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._told: dict[str, OperationState] = {}
        self._progress = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(Text(plain(text), style="yellow"))

    def update(self, look: Look) -> None:
        if self._told.get(look.operation.id) is not look.operation.state and not look.over:
            self._progress.console.print(cell(headline(look.operation)))
            self._told[look.operation.id] = look.operation.state
        for move in look.moves:
            if settled(move):
                self._end(move)
            elif move.id in self._bars or len(self._bars) < MAX_BARS:
                self._show(move)

    def _show(self, move: Operation) -> None:
        self._told.pop(move.id, None)  # parked before, and goes on
        name = plain(f"{move.subject} -> {move.target or '?'}")
        if move.id not in self._bars:
            self._bars[move.id] = self._progress.add_task("", total=1.0, name=name, numbers="")
        done = fraction(move)
        self._progress.update(self._bars[move.id], completed=done, name=name, numbers=numbers(move))

    def _end(self, move: Operation) -> None:
        bar = self._bars.pop(move.id, None)
        if bar is not None:
            self._progress.remove_task(bar)
        if self._told.get(move.id) is not move.state:
            self._told[move.id] = move.state
            self._progress.console.print(cell(result(move)))


class LineView:
    """One line per change, and one per running move every PLAIN_EVERY_S: for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._states: dict[str, OperationState] = {}
        self._said_at_s: dict[str, float] = {}

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, text: str) -> None:
        self._line(text)

    def update(self, look: Look) -> None:
        mains = () if look.operation in look.moves else (look.operation,)
        for operation in (*mains, *look.moves):
            before = self._states.get(operation.id)
            if before is not operation.state:
                self._states[operation.id] = operation.state
                self._said_at_s[operation.id] = self._clock()
                self._line(result(operation) if settled(operation) else headline(operation))
            elif operation in look.moves and self._due(operation):
                self._said_at_s[operation.id] = self._clock()
                self._line(f"{operation.subject}: {fraction(operation):.0%}, {numbers(operation)}")

    def _due(self, move: Operation) -> bool:
        quiet_s = self._clock() - self._said_at_s[move.id]
        return move.state is OperationState.RUNNING and quiet_s >= PLAIN_EVERY_S

    def _line(self, text: str) -> None:
        # Written as it is: a log line is never folded.
        self._console.file.write(f"{time.strftime('%H:%M:%S')} {plain(text)}\n")
        self._console.file.flush()
