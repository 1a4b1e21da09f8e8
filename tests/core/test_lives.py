"""A journal that is lost, or restored from before: no agent takes its attempts for those of another life."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrd.control import MigrateRequest
from migrd.journal import Journal
from migrd.journal_file import raise_epoch
from migrd.operations import OperationState
from migrd.ports import JournalError
from migrd.sagas.events import PowerRequested
from storage.errors import Refused
from tests.core.fake_world import World
from tests.core.harness import Cluster3, MemoryJournal
from tests.core.vloop import run

REQUEST = PowerRequested(host="h1", action="on")


def world() -> World:
    made = World()
    made.add_iscsi("web", "h1")
    return made


async def moves(cluster: Cluster3, target: str) -> str:
    started = await cluster.controller.migrate("web", MigrateRequest(to=target))
    ended = await cluster.until(started.id)
    assert ended.state is OperationState.DONE
    assert [g.host for g in cluster.controller.cluster().guests if g.state.has_process] == [target]
    return started.id


def begun(cluster: Cluster3) -> list[tuple[str, str, str, int]]:
    """(host, operation, step, attempt) of every attempt that an agent began."""
    agents = sorted(cluster.agents.items())
    return [(name, a.operation, a.step, a.attempt) for name, agent in agents for a in agent.seen]


async def copying(cluster: Cluster3) -> str:
    """A migration that runs."""
    started = await cluster.controller.migrate("web", MigrateRequest(to="h3"))
    for _ in range(1000):
        if any(step == "migrate" for _, _, step, _ in begun(cluster)):
            return started.id
        await asyncio.sleep(0.01)
    raise AssertionError("it never began to copy")


def test_an_empty_journal_gets_no_answers_of_the_one_that_was_lost() -> None:
    """The same operation, step, number and command as in the earlier life: the guest moves all the same."""

    async def story() -> None:
        async with Cluster3(world()) as cluster:
            first = await moves(cluster, "h3")
            await moves(cluster, "h1")
            before = len(begun(cluster))
            await cluster.kill()
            lost = cluster.journal
            cluster.journal = MemoryJournal()
            cluster.journal.epoch = lost.epoch  # raised by the operator
            cluster._folded, cluster._states = 0, {}
            await cluster.start()
            assert await moves(cluster, "h3") == first
            again = begun(cluster)
            assert len(again) > before
            assert len(set(again)) == len(again)  # the ledger answered for nothing
            cluster.assert_clean()

    run(story())


def test_a_journal_restored_from_before_repeats_no_attempt_of_the_life_that_was_lost() -> None:
    """Also of an operation that was open when the backup was made, with its attempt numbers used up since."""

    async def story() -> None:
        async with Cluster3(world()) as cluster:
            started = await copying(cluster)
            backup = list(cluster.journal.rows)
            assert (await cluster.until(started)).state is OperationState.DONE
            await moves(cluster, "h1")
            await cluster.kill()
            cluster.journal.rows = backup
            cluster.journal.lives = cluster.journal.lives[:1]
            cluster._folded, cluster._states = 0, {}
            await cluster.start()
            ended = await cluster.until(started)  # goes on from what it sees on the hosts
            assert ended.state.ended
            here = [g.host for g in cluster.controller.cluster().guests if g.state.has_process]
            assert await moves(cluster, "h2" if here != ["h2"] else "h3") == "op-000002"
            again = begun(cluster)
            assert len(set(again)) == len(again)
            cluster.assert_clean()

    run(story())


def test_an_attempt_of_the_life_before_is_followed_under_its_own_name() -> None:
    """A migration that runs across a restart is found again, not begun once more (I1)."""

    async def story() -> None:
        made = world()
        made.copy_s = 60.0
        async with Cluster3(made) as cluster:
            started = await copying(cluster)
            await cluster.kill()
            await cluster.start()
            assert (await cluster.until(started)).state is OperationState.DONE
            migrations = [operation for _, operation, step, _ in begun(cluster) if step == "migrate"]
            assert migrations == [f"{started}@life1"]
            assert ("h1", f"{started}@life2", "release", 1) in begun(cluster)
            cluster.assert_clean()

    run(story())


def test_an_attempt_of_the_life_before_can_be_stopped() -> None:
    """Under another name the agent would not know it, and the copy would go on although it was cancelled."""

    async def story() -> None:
        made = world()
        made.copy_s = 3000.0
        async with Cluster3(made) as cluster:
            started = await copying(cluster)
            await cluster.kill()
            await cluster.start()
            await cluster.controller.cancel(started)
            assert (await cluster.until(started, at_most_s=120.0)).state is OperationState.UNDONE
            assert [g.host for g in cluster.controller.cluster().guests if g.state.has_process] == ["h1"]
            cluster.assert_clean()

    run(story())


def test_a_daemon_that_agents_would_refuse_says_so_before_it_begins_anything() -> None:
    """I4: known from the hosts' reports; the remedy names the number."""

    async def story() -> None:
        made = world()
        async with Cluster3(made) as cluster:
            made.epochs["h2"] = 7
            reasons = cluster.controller.readiness().reasons
            assert "h2: obeys epoch 7" in str(reasons)
            assert "migrd --raise-epoch 7," in str(reasons)
            with pytest.raises(Refused, match="raise-epoch 7"):
                await cluster.controller.migrate("web", MigrateRequest(to="h3"))
            assert cluster.journal.rows == []
            made.epochs["h2"] = 1
            assert cluster.controller.readiness().ready
            await moves(cluster, "h3")

    run(story())


async def test_every_start_has_a_name_of_its_own_and_rows_remember_theirs(tmp_path: Path) -> None:
    """Also two starts from one and the same backup."""
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    names = [journal.life(1)]
    await journal.append("op-000001", REQUEST, 1.0)
    await journal.close()
    backup = path.read_bytes()
    for _ in range(2):
        path.write_bytes(backup)
        for _ in range(3):  # two starts that write nothing leave nothing
            journal = await Journal.open(path)
            assert journal.life(1) == names[0]
            names.append(journal.life(2))
            await journal.close()
    assert len(set(names)) == len(names) == 7
    journal = await Journal.open(path)
    assert len(journal._file.lives) == 2
    for n in range(5):
        await journal.append(f"op-{n + 2:06d}", REQUEST, 1.0)
        await journal.close()
        journal = await Journal.open(path)
    assert len(journal._file.lives) == 7
    await journal.drop(["op-000001", "op-000002", "op-000003"])
    await journal.close()
    journal = await Journal.open(path)
    assert len(journal._file.lives) == 4  # of the three rows that are left, and its own
    await journal.close()


async def test_the_epoch_is_raised_only_upwards_and_only_while_no_daemon_runs(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    await journal.append("op-000001", REQUEST, 1.0)
    with pytest.raises(JournalError, match="in use"):
        raise_epoch(path, 41)
    await journal.close()
    raise_epoch(path, 41)
    for lower in (1, 41):
        with pytest.raises(JournalError, match="at epoch 41 already"):
            raise_epoch(path, lower)
    journal = await Journal.open(path)
    assert journal.epoch == 42
    assert len(await journal.load()) == 1
    await journal.close()
    raise_epoch(tmp_path / "lost" / "journal", 7)  # none is there: the next start finds an empty one
    journal = await Journal.open(tmp_path / "lost" / "journal")
    assert (journal.epoch, len(await journal.load())) == (8, 0)
    await journal.close()


def test_the_verb_of_the_command_line(tmp_path: Path) -> None:
    """Exit codes and words; the journal is the one of [state] dir."""
    pki = tmp_path / "pki"
    make = Path(__file__).parents[2] / "deploy" / "pki" / "make-certs"
    for words in ("init", "daemon"):
        subprocess.run([make, words, pki], check=True, capture_output=True)
    (tmp_path / "state").mkdir()
    config = tmp_path / "migrd.toml"
    config.write_text(
        f'[api]\nlisten = "127.0.0.1:0"\nplain = true\ntoken_file = "{pki}/token"\n'
        f'[agents]\ncert = "{pki}/migrd.pem"\nkey = "{pki}/migrd.key"\nca = "{pki}/ca.pem"\n'
        f'[state]\ndir = "{tmp_path}/state"\n[hosts.h1]\nagent = "https://127.0.0.1:1"\n'
    )

    def migrd(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "migrd.main", "--config", str(config), *words]
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, check=False, cwd=make.parents[2]
        )

    done = migrd("--raise-epoch", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the next start will have epoch 13" in done.stdout
    assert migrd("--raise-epoch", "12").returncode == 1
    for wrong in ("0", "-1", "many", str(1 << 40)):
        refused = migrd("--raise-epoch", wrong)
        assert refused.returncode == 2
        assert "--raise-epoch" in refused.stderr
