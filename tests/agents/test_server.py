"""The agent over real TLS on loopback: who may speak, what is refused, what is answered."""

from __future__ import annotations

import asyncio
import json
import ssl

import aiohttp
import pytest
import structlog

from agents.client import AgentClient, AttemptNotSeen, StaleEpoch
from agents.config import Limits, Listen
from agents.protocol import (
    Attempt,
    DomainState,
    Observe,
    Outcome,
    Preflight,
    SweepTarget,
)
from agents.tls import TlsFiles, client_context, server_context
from agents.wire import dump
from storage.errors import Refused, Retryable, Unknown
from storage.words import DrbdVolume, Health, OtherVolume
from tests.agents.conftest import Certificates, StartWorld, World
from tests.agents.fakes import FakeHypervisor, running

R0 = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("h1", "h2"))


OPERATION = "op-000001@3f9a1c20"  # as the daemon names it


def sweep(step: str = "s1", *, attempt: int = 1, epoch: int = 1, uuid: str = "u") -> Attempt:
    return Attempt(
        operation=OPERATION, step=step, attempt=attempt, epoch=epoch, command=SweepTarget(uuid=uuid)
    )


async def raw(
    world: World,
    tls: TlsFiles,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, object]]:
    """One request without the client's help."""
    connector = aiohttp.TCPConnector(ssl=client_context(tls))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, world.url + path, data=body, headers=headers) as response,
    ):
        return response.status, json.loads(await response.read())


def auth_failures(world: World, reason: str) -> float:
    return world.agent.metrics.registry.get_sample_value(
        "migrd_agent_auth_failures_total", {"reason": reason}
    ) or 0.0  # fmt: skip


def requests_seen(world: World) -> float:
    found = world.agent.metrics.registry.collect()
    return sum(
        sample.value
        for metric in found
        for sample in metric.samples
        if sample.name == "migrd_agent_requests_total"
    )


async def test_the_report_says_what_is_there(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u1", name="web"))) as world:
        report = await world.client.report()
        assert (report.host, report.libvirt_ok, report.epoch) == ("h1", True, 0)
        assert [(d.name, d.state) for d in report.domains] == [("web", DomainState.RUNNING)]
        assert report.memory_total_bytes > 0
        assert report.versions["drbd-utils"] == "9.22.0"
        assert report.boot_id


async def test_a_report_is_a_look_that_began_after_the_question(start: StartWorld) -> None:
    """A drain asks what is left right after a guest has gone: the look of a moment ago still shows it."""
    hypervisor = FakeHypervisor(running("u1", name="web"))
    async with start(hypervisor) as world:
        assert (await world.client.report()).domains
        del hypervisor.domains["u1"]  # and no event has told of it yet
        assert not (await world.client.report()).domains


async def test_a_client_without_certificate_gets_no_http(
    start: StartWorld, certificates: Certificates
) -> None:
    async with start() as world:
        context = ssl.create_default_context(cafile=certificates.migrd.ca)
        async with AgentClient.https("h1", world.url, context) as client:
            with pytest.raises(Retryable, match="certificate"):
                await client.report()
        assert auth_failures(world, "no-certificate") >= 1
        assert requests_seen(world) == 0


async def test_a_certificate_of_another_authority_is_refused(
    start: StartWorld, certificates: Certificates
) -> None:
    """And the log says why, in OpenSSL's words: it may as well be a clock that is behind."""
    async with start() as world:
        with structlog.testing.capture_logs() as lines:
            async with AgentClient.https("h1", world.url, client_context(certificates.stranger)) as client:
                with pytest.raises(Retryable, match="certificate"):
                    await client.report()
        assert auth_failures(world, "bad-certificate") >= 1
        assert requests_seen(world) == 0
    refused = [line for line in lines if line["event"] == "client refused in the TLS handshake"]
    assert "unable to get local issuer certificate" in refused[0]["detail"]


async def test_a_neighbouring_agents_certificate_may_not_command(
    start: StartWorld, certificates: Certificates
) -> None:
    """And the log names it: that name may only be missing from allowed_clients."""
    async with start() as world:
        with structlog.testing.capture_logs() as lines:
            status, problem = await raw(world, certificates.neighbour, "GET", "/v1/report")
        assert (status, problem["type"]) == (403, "forbidden")
        assert auth_failures(world, "name") == 1
    (line,) = [line for line in lines if line["event"] == "client refused: name not allowed"]
    assert "h2" in line["names"]
    assert (line["peer"], line["log_level"]) == ("127.0.0.1", "warning")


async def test_the_client_checks_the_agents_name(start: StartWorld, certificates: Certificates) -> None:
    async with start() as world:
        url = world.url.replace("127.0.0.1", "127.0.0.2")
        async with AgentClient.https(
            "h1", url, client_context(certificates.migrd), connect_timeout_s=1
        ) as client:
            with pytest.raises((Refused, Retryable)):
                await client.report()


async def test_refused_connection_is_retryable(certificates: Certificates) -> None:
    async with AgentClient.https("h9", "https://127.0.0.1:1", client_context(certificates.migrd)) as client:
        with pytest.raises(Retryable):
            await client.submit(sweep())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", ["JSON"]),
        (b"[]", ["(document)"]),
        (b"\xff\xfe", ["JSON"]),
        (b'{"operation":"o","step":"s","attempt":1,"epoch":1}', ["command: required, but missing"]),
        (
            b'{"operation":"o","step":"s","attempt":"1","epoch":1,"x":1,"command":{"kind":"sweep-target","y":1}}',
            ["attempt: ", "x: unknown key", "uuid: required, but missing", "y: unknown key"],
        ),
        (b'{"operation":"o","step":"s","attempt":1,"epoch":1,"command":{"kind":"format-disk"}}', ["command"]),
    ],
)
async def test_bad_documents_are_answered_with_every_mistake(
    start: StartWorld, certificates: Certificates, body: bytes, words: list[str]
) -> None:
    async with start() as world:
        status, problem = await raw(world, certificates.migrd, "POST", "/v1/attempts", body)
        assert (status, problem["type"]) == (400, "bad-request")
        for word in words:
            assert word in " | ".join(problem["errors"])  # type: ignore[arg-type]


async def test_a_body_that_cannot_be_decoded_is_no_bug(start: StartWorld, certificates: Certificates) -> None:
    async with start() as world:
        status, problem = await raw(
            world, certificates.migrd, "POST", "/v1/attempts", b"x", {"Content-Encoding": "gzip"}
        )
        assert (status, problem["type"]) == (400, "bad-request")


async def test_bodies_over_one_mebibyte_are_refused(start: StartWorld, certificates: Certificates) -> None:
    async with start() as world:
        big = b'{"operation":"' + b"x" * (1 << 20) + b'"}'
        status, problem = await raw(world, certificates.migrd, "POST", "/v1/attempts", big)
        assert (status, problem["type"]) == (413, "too-large")


async def test_unknown_paths_and_methods_are_problems_too(
    start: StartWorld, certificates: Certificates
) -> None:
    async with start() as world:
        for method, path, expected in (
            ("GET", "/nothing", (404, "not-found")),
            ("DELETE", "/v1/report", (405, "method-not-allowed")),
            ("GET", "/v1/attempts/o/s/x", (400, "bad-request")),
            ("GET", "/v1/attempts/o/s/1?wait_s=soon", (400, "bad-request")),
        ):
            status, problem = await raw(world, certificates.migrd, method, path)
            assert (status, problem["type"]) == expected


async def test_an_attempt_never_seen_is_not_seen(start: StartWorld) -> None:
    async with start() as world:
        with pytest.raises(AttemptNotSeen):
            await world.client.wait(OPERATION, "s1", 1, 0.0)
        with pytest.raises(AttemptNotSeen):
            await world.client.abort(OPERATION, "s1", 1, epoch=1)


async def test_an_attempt_runs_and_answers_the_same_for_ever(start: StartWorld) -> None:
    async with start() as world:
        world.hypervisor.set_state("u", DomainState.SHUTOFF, "failed")
        first = await world.client.submit(sweep())
        assert first.outcome in (Outcome.RUNNING, Outcome.DONE)
        ended = await world.client.wait(OPERATION, "s1", 1, 5.0)
        assert ended.outcome is Outcome.DONE
        assert await world.client.submit(sweep()) == ended
        assert world.hypervisor.calls == ["undefine u"]


async def test_a_submission_that_waits_answers_with_the_end(
    start: StartWorld, certificates: Certificates
) -> None:
    """A short step costs one round trip; one that takes longer is RUNNING, and a bad wish is no command."""
    async with start() as world:
        world.hypervisor.set_state("u", DomainState.SHUTOFF, "failed")
        assert (await world.client.submit(sweep(), 5.0)).outcome is Outcome.DONE
        world.hypervisor.set_state("v", DomainState.PAUSED_INCOMING, job=True)
        assert (await world.client.submit(sweep("s2", uuid="v"), 0.05)).outcome is Outcome.RUNNING
        body = dump(sweep("s3"))
        for wish in ("soon", "nan"):
            path = f"/v1/attempts?wait_s={wish}"
            status, _ = await raw(world, certificates.migrd, "POST", path, body)
            assert status == 400
        with pytest.raises(AttemptNotSeen):
            await world.client.wait("op1", "s3", 1, 0.0)


async def test_a_lost_reply_is_never_taken_for_not_begun(certificates: Certificates) -> None:
    """The agent dies with the command in hand; that the second try finds nobody says nothing of the first."""
    heard = asyncio.Event()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        heard.set()
        server.close()
        writer.close()

    server = await asyncio.start_server(die, "127.0.0.1", 0, ssl=server_context(certificates.agent))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with AgentClient.https("h1", url, client_context(certificates.migrd)) as client:
        with pytest.raises(Unknown):
            await client.submit(sweep(), 5.0)
    assert heard.is_set()


async def test_names_with_slashes_travel(start: StartWorld) -> None:
    async with start() as world:
        await world.client.submit(sweep("h1/prepare ü?"))
        assert (await world.client.wait(OPERATION, "h1/prepare ü?", 1, 5.0)).outcome is Outcome.DONE


async def test_i4_a_stale_epoch_is_refused_for_commands_and_aborts(start: StartWorld) -> None:
    async with start() as world:
        await world.client.submit(sweep("a", epoch=7))
        with pytest.raises(StaleEpoch) as stale:
            await world.client.submit(sweep("b", epoch=6))
        assert stale.value.highest == 7  # the daemon's remedy names it
        with pytest.raises(StaleEpoch):
            await world.client.abort(OPERATION, "a", 1, epoch=6)
        with pytest.raises(StaleEpoch):
            await world.client.submit(sweep("a", epoch=6))
        with pytest.raises(AttemptNotSeen):
            await world.client.wait(OPERATION, "b", 1, 0.0)


async def test_i4_a_stale_epoch_is_refused_after_a_restart(start: StartWorld) -> None:
    async with start() as world:
        await world.client.submit(sweep("a", epoch=7))
        await world.client.wait(OPERATION, "a", 1, 5.0)
    async with start() as world:
        assert (await world.client.report()).epoch == 7
        with pytest.raises(StaleEpoch):
            await world.client.submit(sweep("b", epoch=6))
        assert (await world.client.submit(sweep("a", epoch=8))).outcome is Outcome.DONE


async def test_an_id_is_not_reused_for_another_command(start: StartWorld) -> None:
    async with start() as world:
        await world.client.submit(sweep())
        with pytest.raises(Refused, match="another command"):
            await world.client.submit(sweep(uuid="other"))


async def test_preflight_answers_in_order(start: StartWorld) -> None:
    async with start() as world:
        other = OtherVolume(path="/tmp/x.img", reason="a local file")
        answer = await world.client.preflight(
            Preflight(cpus=("<cpu/>", "<cpu>avx9</cpu>"), volumes=(other, R0))
        )
        assert answer.cpus == ((), ("no such feature here",))
        assert answer.volumes == (("other:/tmp/x.img: a local file",), ())


async def test_observation_of_a_guest(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u1"))) as world:
        world.in_use.running.add("u1")
        seen = await world.client.observe(Observe(uuid="u1", volumes=(R0,)))
        assert (seen.state, seen.qemu_process) == (DomainState.RUNNING, True)
        assert seen.volumes[0].identity == "id of drbd:r0/0"
        gone = await world.client.observe(Observe(uuid="u2"))
        assert (gone.state, gone.qemu_process) == (DomainState.ABSENT, False)


async def test_i19_an_observation_without_libvirt_is_unknown(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u1"))) as world:
        world.hypervisor.trouble = "libvirtd is down"
        seen = await world.client.observe(Observe(uuid="u1"))
        assert (seen.state, seen.job) == (DomainState.UNKNOWN, True)


async def test_i19_guests_are_unknown_while_libvirt_is_away(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u1"))) as world:
        assert (await world.client.report()).domains[0].state is DomainState.RUNNING
        world.hypervisor.trouble = "libvirtd is down"
        world.agent.inventory.poke()
        await asyncio.sleep(0.5)
        report = await world.client.report()
        assert not report.libvirt_ok
        assert report.domains[0].state is DomainState.UNKNOWN
        assert any("libvirtd is down" in problem for problem in report.problems)


async def test_i20_a_hanging_volume_is_reported_as_unknown(start: StartWorld) -> None:
    async with start(limits=Limits(inspect_deadline_s=0.2)) as world:
        world.driver.block = asyncio.Event()
        seen = await world.client.observe(Observe(uuid="u1", volumes=(R0,)))
        assert seen.volumes[0].health is Health.UNKNOWN
        assert "no answer" in seen.volumes[0].problems[0]
        world.driver.block.set()
        await asyncio.sleep(0.05)
        seen = await world.client.observe(Observe(uuid="u1", volumes=(R0,)))
        assert seen.volumes[0].health is Health.OK


async def test_health_and_metrics(start: StartWorld, certificates: Certificates) -> None:
    async with start(
        FakeHypervisor(running("u1")), metrics_listen=Listen(address="127.0.0.1", port=0)
    ) as world:
        await world.client.report()
        status, health = await raw(world, certificates.migrd, "GET", "/healthz")
        assert (status, health["status"]) == (200, "ok")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{world.agent.metrics_port}/metrics") as response,
        ):
            text = await response.text()
            assert response.status == 200
        assert 'migrd_agent_guests{state="running"} 1.0' in text
        assert "migrd_agent_libvirt_up 1.0" in text
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{world.agent.metrics_port}/v1/report") as response,
        ):
            assert response.status == 404
