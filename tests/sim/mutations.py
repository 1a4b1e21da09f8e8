"""Guards removed one at a time, on a copy of the sources: the simulator must notice within SEEDS seeds.

    python -m tests.sim.mutations [--first SEED] [NAME ...]    # which seed notices what

A replacement must match exactly once, so a refactor that moves a guard cannot disable its entry unseen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("migrd", "agents", "storage", "tests/core", "tests/sim")
SEEDS = 200
AT_ONCE = 2
DEADLINE_S = 400.0
_PROGRAM = """
import sys
from tests.sim.run import run_seed
first, seeds = map(int, sys.argv[1:])
for seed in range(first, first + seeds):
    failure = run_seed(seed).failure
    if failure:
        print(seed, failure.split("\\n\\n")[1].splitlines()[0])
        break
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """`invariant`: what the guard stands for; others may break first."""

    name: str
    invariant: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """`seed` None: by none of them."""

    seed: int | None
    seeds: int
    story: str


class NoMatchError(Exception):
    """The text to replace is not there exactly once: the list is older than the code."""


def mutated(text: str, edit: Edit) -> str:
    """Raises NoMatchError."""
    found = text.count(edit.old)
    if found != 1:
        raise NoMatchError(f"{edit.file}: {found} times instead of once: {edit.old!r}")
    return text.replace(edit.old, edit.new)


def copy(to: Path) -> None:
    """The sources, compiled files included: they stay valid, and spare each copy seconds."""
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, to / name)
    (to / "tests" / "__init__.py").touch()


def try_out(mutation: Mutation, *, first: int = 0) -> Noticed:
    """Run ordinary seeds from `first` on on a copy with the fault until one fails. Raises NoMatchError."""
    with tempfile.TemporaryDirectory(prefix="migrd-mutation-") as directory:
        root = Path(directory)
        copy(root)
        for edit in mutation.edits:
            path = root / edit.file
            path.write_text(mutated(path.read_text(), edit))
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(first), str(SEEDS)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{mutation.name}: the simulator itself fails: {done.stderr[-2000:]}")
    seed, _, story = done.stdout.strip().partition(" ")
    if not seed:
        return Noticed(seed=None, seeds=SEEDS, story="")
    return Noticed(seed=int(seed), seeds=int(seed) - first + 1, story=story)


def _one(name: str, invariant: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name=name, invariant=invariant, edits=(Edit(file=file, old=old, new=new),))


_MOVES = "migrd/sagas/migrate_moves.py"
_DRAIN = "migrd/sagas/drain.py"
_MIGRATE = "migrd/sagas/migrate_verdicts.py"
_COLD = "migrd/sagas/cold_verdicts.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        name="what was held back opens a window that its operation has closed",
        invariant="I6",
        edits=(  # each of these guards holds alone
            Edit(file="agents/ledger.py", old="        if found is None:\n", new="        if False:\n"),
            Edit(
                file="agents/ledger.py",
                old="            if overtaken(",
                new="            if False and overtaken(",
            ),
        ),
    ),
    _one("a stale epoch is obeyed", "I4", "agents/ledger.py", "if epoch < highest:", "if epoch < 0:"),
    _one(
        "the flag is cleared before the source lets go",
        "I6",
        "migrd/sagas/migrate_state.py",
        "FINISH = (Stage.RELEASE, Stage.CLOSE_WINDOW, ",
        "FINISH = (Stage.CLOSE_WINDOW, Stage.RELEASE, ",
    ),
    Mutation(
        name="the flag is not cleared",
        invariant="I6",
        edits=(
            Edit(
                file="migrd/sagas/migrate_state.py",
                old="FINISH = (Stage.RELEASE, Stage.CLOSE_WINDOW, ",
                new="FINISH = (Stage.RELEASE, ",
            ),
            Edit(
                file="migrd/sagas/migrate_verdicts.py",
                old="        found += open_windows(side, state.host(side), seen.volumes)",
                new="        found += ()",
            ),
        ),
    ),
    _one(
        "a window that somebody else opened is used",
        "I6 I7",
        "migrd/sagas/compare.py",
        "        reasons += _fitness(here, hosts[0]) + _fitness(there, hosts[1])\n",
        "",
    ),
    _one(
        "identities are not compared",
        "I9",
        "migrd/sagas/compare.py",
        "    if here.identity != there.identity:",
        "    if False:",
    ),
    _one(
        "moved while the source's QEMU still ends",
        "I11",
        "migrd/reconcile.py",
        "def _source_ending(target: SideView) -> Verdict:\n"
        "    match target:\n"
        "        case SideView.RUNNING:\n"
        "            return Verdict.SETTLING",
        "def _source_ending(target: SideView) -> Verdict:\n"
        "    match target:\n"
        "        case SideView.RUNNING:\n"
        "            return Verdict.MOVED",
    ),
    _one(
        "/proc is no witness",
        "I11",
        "migrd/reconcile.py",
        "    return SideView.ENDING if seen.qemu_process else view",
        "    return view",
    ),
    Mutation(
        name="a host that does not answer may lose its power",
        invariant="I19 I12",
        edits=(  # each of the two guards holds alone
            Edit(
                file="migrd/safety.py",
                old='        return (f"{host}: no report of it, so nothing is known about what runs there",)',
                new="        return ()",
            ),
            Edit(
                file="migrd/engine.py",
                old="            if reasons:\n                return PowerActed(",
                new="            if False:\n                return PowerActed(",
            ),
        ),
    ),
    Mutation(
        name="a cancel undoes after the commit point",
        invariant="I5 I15",
        edits=(
            Edit(
                file=_MIGRATE,
                old="    assert found in MOVED, found\n",
                new="    assert found in MOVED, found\n    if state.cancelled:\n"
                "        return start_back(replace(state, migrate_open=False))\n",
            ),
        ),
    ),
    _one(
        '"off" is believed without reading the status',
        "I3",
        _DRAIN,
        "    return _read(replace(state, phase=Phase.POWER_READ, reasons=reasons), 1, 0.0)",
        "    return replace(state, phase=Phase.DONE, off=True, reasons=reasons), ()",
    ),
    _one(
        "a BMC that does not answer is off",
        "I3",
        "migrd/power.py",
        '            return f"unknown: {answer}"',
        '            return "off"',
    ),
    _one(
        "power goes off unchecked",
        "I12",
        "migrd/engine.py",
        "        return PowerChecked(reasons=(*seen.reasons, *moving))",
        "        return PowerChecked(reasons=())",
    ),
    Mutation(
        name="a failed migration is swept up without a look, and what has run is swept",
        invariant="I1 I5",
        edits=(  # each of these guards holds alone
            Edit(
                file="migrd/sagas/migrate.py",
                old="    return look(replace(state, back_to=None), Stage.RECONCILE)",
                new="    from migrd.sagas.migrate_moves import start_back\n    return start_back(state)",
            ),
            Edit(
                file="agents/attempts/domain_steps.py",
                old="            )\n        case _:\n            return (",
                new="            )\n        case DomainState.UNKNOWN:\n            return (",
            ),
            Edit(
                file="agents/attempts/domain_steps.py",
                old="    if facts.state is DomainState.PAUSED_INCOMING:\n        await hypervisor.destroy",
                new="    if facts.state.has_process:\n        await hypervisor.destroy",
            ),
            Edit(  # stands for the guard of agents.hypervisor.LibvirtHypervisor
                file="tests/sim/hypervisor.py",
                old="        if domain.state is not DomainState.PAUSED_INCOMING:\n            raise",
                new="        if not domain.process:\n            raise",
            ),
        ),
    ),
    _one(
        "a migrate attempt whose end is not known is made again",
        "I16",
        _MOVES,
        "    back_to = None if lost else state.stage\n",
        "    back_to = None if lost else state.stage\n"
        "    if lost:\n        return enter(state, Stage.MIGRATE, backoff_s(state.tries))\n",
    ),
    _one(
        "a migrate attempt is forgotten over a restart",
        "I16",
        "migrd/sagas/migrate.py",
        "answers=(), going_back=going_back)",
        "answers=(), going_back=going_back, migrate_open=False)",
    ),
    Mutation(
        name="acts before the journal has it",
        invariant="I6 I16",
        edits=(
            Edit(
                file="migrd/executor.py",
                old="        row = None\n        if not saga.only_waits",
                new="        row = None\n        self._issue(commands)\n        if not saga.only_waits",
            ),
            Edit(
                file="migrd/executor.py",
                old="        self._changed(self.record, row)\n        self._issue(commands)\n",
                new="        self._changed(self.record, row)\n",
            ),
        ),
    ),
    _one(
        "a row is refused while its disk hangs, and may be durable all the same",
        "I16",
        "migrd/journal.py",
        "                await asyncio.wait({work})\n",
        "                raise JournalReadOnly(self._read_only)\n",
    ),
    _one(
        "a request whose first row hangs is forgotten",
        "I16",
        "migrd/engine.py",
        "                beginning.add_done_callback(_began_late)\n",
        "                beginning.cancel()\n",
    ),
    _one(
        "what decides about a host is forgotten",
        "I16",
        "migrd/retention.py",
        "            needed |= {r.id for r in _decisive(about)}\n",
        "            needed |= set()\n",
    ),
    _one(
        "what the daemon forgets stays in the journal",
        "I16",
        "migrd/engine.py",
        "            await self._journal.drop(names)\n",
        "            await self._journal.drop(names[:-1])\n",
    ),
    _one(
        "nobody notices that the journal's disk hangs",
        "I20",
        "migrd/journal.py",
        "    await asyncio.wait({work}, timeout=deadline_s)\n",
        "    await asyncio.wait({work})\n",
    ),
    _one(
        "attempt numbers are used again",
        "I16",
        _MOVES,
        "    attempt = state.attempts.get(stage, 0) + 1",
        "    attempt = 1",
    ),
    Mutation(
        name="guests are stopped without consent",
        invariant="I5",
        edits=(
            Edit(
                file=_DRAIN,
                old="    if event.guest in state.request.allow_stop and task.tries < MAX_TRIES:",
                new="    if task.tries < MAX_TRIES:",
            ),
            Edit(
                file=_DRAIN,
                old='    assert uuid in state.request.allow_stop, f"no consent to stop {uuid}"\n',
                new="",
            ),
        ),
    ),
    _one(
        "caps are ignored",
        "I20",
        "migrd/slots.py",
        "            if sources[slot.source] < caps.per_source and targets[slot.target] < caps.per_target",
        "            if caps",
    ),
    _one(
        "restore takes guests that the drain did not move",
        "I5",
        "migrd/controller.py",
        "        restore = () if drain is None or not request.restore else _moved(drain)",
        "        others = [guest for guest in self._view.cluster().guests if guest.host != host]\n"
        "        restore = tuple(MovedGuest(guest=g.uuid, name=g.name, now_on=g.host) for g in others)",
    ),
    Mutation(
        name="nobody watches the replication during the copy",
        invariant="I7",
        edits=(
            Edit(
                file="agents/attempts/mirror.py",
                old="        if self._handover is None or not self._volumes:\n            await",
                new="        if poll_s:\n            await",
            ),
        ),
    ),
    _one(
        "cold: started on the target while the source can start it as well",
        "I1 I2",
        _COLD,
        "    return enter(state, ColdStage.MOVE, backoff_s(state.tries))\n",
        "    return enter(state, ColdStage.START, backoff_s(state.tries))\n",
    ),
    _one(
        "cold: the source's silence is its word",
        "I2",
        _COLD,
        "    if state.moved and not state.going_back and seen.source is SideView.UNKNOWN:",
        "    if not state.going_back and seen.source is SideView.UNKNOWN:",
    ),
    _one(
        "cold: a cancel undoes after the commit point",
        "I5 I15",
        _COLD,
        "        case Found.RUNS_ON_TARGET if state.issued(ColdStage.MOVE):\n",
        "        case Found.RUNS_ON_TARGET if state.cancelled:\n"
        "            return enter(replace(state, going_back=True), ColdStage.RETURN)\n"
        "        case Found.RUNS_ON_TARGET if state.issued(ColdStage.MOVE):\n",
    ),
    Mutation(
        name="cold: a definition that libvirt still moves is swept",
        invariant="I16",
        edits=(
            Edit(
                file=_COLD,
                old="        return enter(state, ColdStage.SETTLE, backoff_s(state.tries))\n",
                new="        return enter(state, ColdStage.SWEEP, backoff_s(state.tries))\n",
            ),
            Edit(
                file="migrd/sagas/cold_moves.py",
                old="        case ColdStage.SETTLE | ColdStage.SWEEP:\n",
                new="        case ColdStage.SETTLE:\n            return False\n"
                "        case ColdStage.SWEEP:\n",
            ),
        ),
    ),
    _one(
        "cold: a guest is started at home without its disks",
        "I15",
        "migrd/sagas/cold_moves.py",
        "    return state.down and (state.ran or state.issued(ColdStage.RELEASE))",
        "    return state.down and state.issued(ColdStage.RELEASE)",
    ),
    _one(
        "cold: a step on the guest is forgotten over a restart",
        "I16",
        "migrd/sagas/cold.py",
        "    return replace(state, tries=0, starts=0, failures=0, looks=0, answers=())",
        "    return replace(state, tries=0, starts=0, failures=0, looks=0, answers=(), open=None)",
    ),
    _one(
        "a source that only waits for a lost answer is left alone",
        "I1",
        "migrd/sagas/migrate_switch_over.py",
        "    return replace(state, source_ended=True), (order,)",
        "    return replace(state, source_ended=True), ()",
    ),
    _one(
        "nobody holds libvirtd's connections while a guest arrives",
        "I1",
        "agents/arrivals.py",
        "            if None in self._arrivals.values():\n",
        "            if False:\n",
    ),
    _one(
        "they are let go of although the guest has run",
        "I1",
        "agents/arrivals.py",
        "    return holding.has_run is not False and now_s",
        "    return holding.has_run is None and now_s",
    ),
    _one(
        "the source is ended though the target does not run",
        "I5",
        "migrd/sagas/migrate_switch_over.py",
        "    return pair.source is SideView.PAUSED and _has_run(pair.target, event.target)",
        "    return pair.source is SideView.PAUSED",
    ),
    Mutation(
        name="a definition that libvirt left on the source stays there",
        invariant="I1 I16",
        edits=(  # each of the two guards holds alone
            Edit(
                file=_MOVES,
                old="            return state.proved and not state.source_clean\n",
                new="            return False\n",
            ),
            Edit(
                file=_MIGRATE,
                old="    if pair.source is SideView.STOPPED or (",
                new="    if False or (",
            ),
        ),
    ),
    _one(
        "a move is done though its source lost its power before libvirt's Confirm",
        "I1 I16",
        _MIGRATE,
        "    if pair.source is SideView.OFF and not state.source_clean:\n"
        "        return _without_source(state, event, pair)\n",
        "",
    ),
    _one(
        "a copy that was never seen counts as compared",
        "I7",
        _MIGRATE,
        "proved=state.proved or pair.source is not SideView.OFF)",
        "proved=True)",
    ),
    _one(
        "a move is committed without comparing the copies",
        "I7",
        _MIGRATE,
        "        if apart:\n            return _diverged(state, apart)\n",
        "",
    ),
    _one(
        "running on both hosts is taken for moved",
        "I1 I11",
        "migrd/reconcile.py",
        "        case SideView.RUNNING | SideView.PAUSED:\n            return Verdict.BOTH_RUNNING\n",
        "        case SideView.RUNNING | SideView.PAUSED:\n            return Verdict.MOVED\n",
    ),
    _one(
        "an abort of a dead daemon is obeyed",
        "I4",
        "agents/attempts/runner.py",
        "        await self._ledger.obey(epoch)\n        live = self._live.get(key)\n",
        "        live = self._live.get(key)\n",
    ),
    Mutation(
        name="nobody watches a migration whose attempt is over",
        invariant="I7",
        edits=(  # each of the two guards holds alone
            Edit(
                file="agents/attempts/runner.py",
                old="        if isinstance(command, MigrateDomain):\n            return await self._follow",
                new="        if False:\n            return await self._follow",
            ),
            Edit(
                file="agents/attempts/runner.py",
                old="                return await self._follow(",
                new="                return Ended(outcome=Outcome.UNKNOWN) or await self._follow(",
            ),
        ),
    ),
    Mutation(
        name="a migration's connection is cut though its target answers",
        invariant="I5",
        edits=(
            Edit(
                file="agents/attempts/switch_over.py",
                old="            if await self._hypervisor.handing_over(self._uuid):",
                new="            if True:",
            ),
            Edit(
                file="agents/attempts/switch_over.py",
                old=" and stream.unheard_s >= self._patience_s:",
                new=":",
            ),
            Edit(
                file="agents/streams/words.py",
                old="        if stream.waiting_bytes > 0 and stream.unanswered >= UNANSWERED_MIN:",
                new="        if True:",
            ),
            Edit(
                file="agents/streams/words.py",
                old="since_s if stream.unheard_s >= now_s - since_s else now_s",
                new="since_s",
            ),
        ),
    ),
)


def _told(mutation: Mutation, first: int) -> str:
    try:
        noticed = try_out(mutation, first=first)
    except (NoMatchError, RuntimeError) as error:
        return f"{mutation.name}: {error}"
    which = f"seed {noticed.seed}, number {noticed.seeds}" if noticed.seed is not None else "BY NONE"
    return f"{mutation.invariant:6} {mutation.name}: {which}: {noticed.story}"


def main(arguments: Iterable[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutations")
    parser.add_argument("names", nargs="*", help="parts of names; all without one")
    parser.add_argument("--first", type=int, default=0, help="where the seeds begin (0)")
    options = parser.parse_args(list(arguments))
    chosen = [m for m in MUTATIONS if not options.names or any(part in m.name for part in options.names)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line in as_completed(pool.submit(_told, mutation, options.first) for mutation in chosen):
            print(line.result(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
