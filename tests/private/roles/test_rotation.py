"""What has an end: keys, releases, directories, checkpoints; by a clock that the tests set."""

import asyncio
import contextlib
import shutil
import subprocess
import time

import httpx2
import psutil
import pytest
from inside import DAY, NOON, Clock, Inside, bundles, inside, question, quick, recipient, until, until_answered, whole

from pomona.core.run_folder import RunFolder
from pomona.private.attestation.case import open_case
from pomona.private.attestation.clauses import findings
from pomona.private.client.asking import BUNDLES, ENVELOPE, NoSuchModel
from pomona.private.client.oblivious import gateway_key, through
from pomona.private.client.reading import Unreachable, read_log
from pomona.private.roles.up import GATEWAY
from pomona.private.sealing.binary_http import Request, encode
from pomona.private.sealing.envelope import seal_request
from pomona.private.sealing.padding import padded
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import IssuerKey, Revocation, hash_of

HOUR = 3600


@pytest.fixture(scope="module")
def tokenizer(device_file):
    return RunFolder(device_file.with_suffix("")).tokenizer


def sealed_for(*contents):
    return seal_request([recipient(each) for each in contents], padded(encode(question())))[0]


async def straight(client, address, envelope):
    answer = await client.post(address + "/requests", content=envelope, headers={"content-type": ENVELOPE.decode()})
    return answer.status_code, answer.text if answer.status_code != 200 else ""


@pytest.mark.slow
def test_a_day_and_the_next_ones(tokenizer, tmp_path, monkeypatch):
    quick(monkeypatch)
    clock = Clock()

    async def days():
        async with inside(tmp_path, tokenizer, clock) as cloud, cloud.asker() as asker, httpx2.AsyncClient() as http:
            await whole(asker)
            known = await asker.known()
            midnight = clock() // DAY * DAY
            issued = [leaf.not_before for leaf in known.written if isinstance(leaf, IssuerKey)]
            assert issued == [midnight, midnight + DAY]  # tomorrow's is there before it signs
            first = gateway_key(known, GATEWAY)
            mornings = [await asker._purse.token(known, asker._client, clock()) for _ in range(2)]
            old = await bundles(http, cloud.addresses["node"])
            processes = [cloud.node.generations[0].pool._process.pid]
            assert len(old) == 1

            await cloud.later(midnight + DAY + HOUR)  # 13 hours
            await until(lambda: listed(asker, 2))
            await until_answered(asker)
            both = await bundles(http, cloud.addresses["node"])
            assert len(both) == 2 and both[0] == old[0]
            assert (await straight(http, cloud.addresses["node"], sealed_for(both[0])))[0] == 200
            assert (await straight(http, cloud.addresses["node"], sealed_for(both[1])))[0] == 200
            known = await asker.known()
            assert gateway_key(known, GATEWAY) != first
            assert await sent(asker, known, mornings[0], both) == 200  # yesterday's, which are good until tonight
            assert await opens(asker, first) == 200
            processes.append(cloud.node.generations[1].pool._process.pid)

            await cloud.later(clock() + 11.5 * HOUR)  # the first keys of the node are 24 hours old and a half
            await until(lambda: listed(asker, 1))
            # The gateway may see before the node that the first keys are over.
            await until(lambda: left(http, cloud.addresses["node"], both[1:], processes[0]))
            assert psutil.pid_exists(processes[1])
            status, why = await straight(http, cloud.addresses["node"], sealed_for(both[0]))
            assert status == 410 and "no key of this node that is good" in why
            assert (await straight(http, cloud.addresses["node"], sealed_for(both[1])))[0] == 200

            await cloud.later(midnight + 2 * DAY + HOUR)
            await until_answered(asker)
            known = await asker.known()
            contents = await bundles(http, cloud.addresses["node"])
            assert await sent(asker, known, mornings[1], contents) == 401  # its key is no longer good
            assert await opens(asker, first) == 200  # the gateway's are good for three days
            await cloud.later(midnight + 3 * DAY + HOUR)
            await until_answered(asker)
            with pytest.raises(Unreachable, match="400"):
                await opens(asker, first)
            assert sorted(path.suffix for path in (tmp_path / "gateway/keys").iterdir()) == [".key"] * 3

    asyncio.run(days())


async def left(http, address, kept, process):
    """Whether a node has these keys alone, and a process of others is gone."""
    return await bundles(http, address) == kept and not psutil.pid_exists(process)


async def listed(asker, count):
    asker._known = None
    with contextlib.suppress(TransparencyError):
        return len((await asker.known()).nodes) == count


async def sent(asker, known, token, contents):
    async with asker._send(known, sealed_for(*contents), token) as answer:
        await answer.whole()
        return answer.status


async def opens(asker, key):
    request = Request(b"POST", b"https", GATEWAY.encode(), BUNDLES, (), b"[]")
    async with through(asker._client, asker.trust.relay, key, request) as answer:
        return answer.status


@pytest.mark.slow
def test_a_release_ends_and_is_renewed_and_revoked(tokenizer, tmp_path, monkeypatch):
    quick(monkeypatch)
    clock = Clock()

    async def ended():
        async with (
            inside(tmp_path, tokenizer, clock, release_seconds=6 * HOUR) as cloud,
            cloud.asker() as asker,
            httpx2.AsyncClient() as http,
        ):
            old = await bundles(http, cloud.addresses["node"])
            clock.now += 5.9 * HOUR
            await until_answered(asker)
            clock.now += 0.2 * HOUR
            with pytest.raises(NoSuchModel, match="there are: none"):
                await whole(asker)
            clock.now += 7 * HOUR  # time for new keys; there is no release for them
            await asyncio.sleep(1.5)
            assert await bundles(http, cloud.addresses["node"]) == old
            assert not await listed(asker, 1)
            await cloud.publish("operator", cloud.release(version="2"))
            await until_answered(asker)  # at once, and not when the keys are half a day old
            second = await bundles(http, cloud.addresses["node"])
            assert len(second) == 2
            dates = {"not_before": int(clock()), "expires": int(clock()) + DAY}
            revoked = lambda release: Revocation(**dates, leaf=hash_of(release).hex(), reason="a hole")
            releases = [cloud.release(version=each) for each in "234"]
            await cloud.publish("operator", revoked(releases[0]), releases[1])
            await until_answered(asker)  # under new keys again, though those before were made just now
            assert len(await bundles(http, cloud.addresses["node"])) == 3
            await cloud.publish("operator", revoked(releases[1]))
            clock.now += 61
            with pytest.raises(NoSuchModel):
                await whole(asker)
            clock.now += 25 * HOUR
            await until(lambda: nothing(http, cloud))  # keys end even where there is nothing to make new ones for
            assert not cloud.node.generations

    asyncio.run(ended())


async def begun(served):
    return bool(served.generations)


async def nothing(http, cloud):
    return await bundles(http, cloud.addresses["node"]) == []


def test_keys_end_where_the_log_is_silent(tokenizer, tmp_path, monkeypatch):
    quick(monkeypatch)
    clock = Clock()

    async def silent():
        async with inside(tmp_path, tokenizer, clock) as cloud, httpx2.AsyncClient() as http:
            await cloud.stop("log")
            clock.now += 25 * HOUR
            await until(lambda: nothing(http, cloud))
            assert (await http.get(cloud.addresses["node"] + "/health")).status_code == 503

    asyncio.run(silent())


def test_keys_end_with_the_proof_that_they_show(tokenizer, tmp_path, monkeypatch):
    quick(monkeypatch)
    clock = Clock()

    async def ended():
        cloud = Inside(tmp_path, clock)
        try:
            await cloud.start_log()
            await cloud.publish("operator", cloud.release())
            monkeypatch.setattr(cloud.opened, "refresh", lambda now: None)
            clock.now += 13 * HOUR  # and the log says nothing new
            cloud.node = await cloud.start_node(tokenizer)
            await until(lambda: begun(cloud.node))
            (keys,) = [each.keys for each in cloud.node.generations]
            assert (keys.expires, keys.renewal) == (NOON + DAY, NOON + 18.5 * HOUR)
            known = await asyncio.to_thread(read_log, cloud.log, tmp_path / "reader", keys.expires - 1)
            refused = {each.clause for each in findings(open_case(keys.content, known)) if each.refusal}
            assert refused == {"listed"}
            clock.now = keys.renewal
            await until(lambda: several(cloud.node))
        finally:
            await cloud.close()

    asyncio.run(ended())


async def several(served):
    return len(served.generations) > 1


def test_a_directory_ends_after_two_hours(tokenizer, tmp_path, monkeypatch):
    quick(monkeypatch)
    clock = Clock()

    async def ended():
        async with inside(tmp_path, tokenizer, clock) as cloud, cloud.asker() as asker:
            clock.now += 90 * 60
            await until_answered(asker)  # it was published again after one
            await cloud.stop("gateway")
            clock.now += 2 * HOUR + 1
            with pytest.raises(TransparencyError, match="no directory"):
                await whole(asker)

    asyncio.run(ended())


@pytest.mark.parametrize(
    ("skew", "refusal"),
    [
        (0, ""),
        (600, ""),
        (-200, ""),
        (-600, "dated .* seconds after now"),
        (2 * DAY, "was the newest .* seconds ago"),
        (-2 * DAY, "dated .* seconds after now"),
    ],
)
def test_a_client_whose_clock_is_wrong(skewed, skew, refusal):
    loop, cloud = skewed

    async def ask():
        async with cloud.asker(lambda: cloud.clock() + skew, f"skew{skew}") as asker:
            if not refusal:
                return await whole(asker)
            with pytest.raises(TransparencyError, match=refusal):
                await whole(asker)

    loop.run_until_complete(ask())


@pytest.fixture(scope="module")
def skewed(tokenizer, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.closing(asyncio.new_event_loop()) as loop:
        quick(monkeypatch)
        entered = inside(tmp_path_factory.mktemp("skew"), tokenizer, Clock())
        cloud = loop.run_until_complete(entered.__aenter__())
        cloud.clock.now += 600  # who is behind sees what was published before
        yield loop, cloud
        loop.run_until_complete(entered.__aexit__(None, None, None))


@pytest.mark.parametrize("ahead", [600, -2 * DAY])
def test_a_node_whose_clock_is_wrong_is_not_listed(skewed, tokenizer, ahead, tmp_path):
    loop, cloud = skewed

    async def started():
        name = f"wrong{ahead}"
        try:
            served = await cloud.start_node(tokenizer, clock=lambda: cloud.clock() + ahead, name=name)
            if ahead > 0:
                await until(lambda: begun(served))
            else:
                await asyncio.sleep(2)
            made = [each.keys.content for each in served.generations]
            async with cloud.asker(state="auditor") as asker:
                known = await asker.known()
            return known, made
        finally:
            await cloud.stop(name)

    known, made = loop.run_until_complete(started())
    if ahead < 0:
        assert not made  # for it the log's checkpoint is of the future: it begins nothing
    else:
        refused = {each.clause for each in findings(open_case(made[0], known)) if each.refusal}
        assert refused == {"begun", "listed"}


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
def test_a_register_that_changes_takes_the_key_away(tokenizer, tmp_path, monkeypatch, capfd):
    quick(monkeypatch)
    from pomona.private.evidence.tpm.client import pcr_extend
    from pomona.private.roles.measure import REGISTER
    from pomona.private.roles.node_keys import open_tpm

    place, state = tmp_path / "socket", tmp_path / "tpm"
    state.mkdir()
    emulator = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--server", f"type=unixio,path={place}"),
            *("--ctrl", f"type=unixio,path={tmp_path / 'control'}", "--tpmstate", f"dir={state}"),
            *("--flags", "startup-clear,not-need-init"),
        ]
    )

    async def changed(attester):
        cloud = Inside(tmp_path, Clock())
        try:
            await cloud.start_log()
            await cloud.publish("operator", cloud.release())
            served = await cloud.start_node(tokenizer, attester)
            address = cloud.addresses["node"]
            async with httpx2.AsyncClient(timeout=20) as http:
                await until(lambda: begun(served))
                (bundle,) = await bundles(http, address)
                assert (await straight(http, address, sealed_for(bundle)))[0] == 200
                await asyncio.to_thread(pcr_extend, attester.tpm, REGISTER, bytes(range(32)))
                several = [straight(http, address, sealed_for(bundle)) for _ in range(3)]
                told = await asyncio.gather(*several)
                assert {status for status, _ in told} <= {503, 410} and any("key-gone" in why for _, why in told)
                assert await bundles(http, address) == [] and not served.generations
                cloud.clock.now += 13 * HOUR
                await asyncio.sleep(1.5)
                assert await bundles(http, address) == []
                assert (await straight(http, address, sealed_for(bundle)))[0] == 410
        finally:
            await cloud.close()

    try:
        while not place.exists():
            time.sleep(0.02)
        attester = open_tpm(f"unix:{place}")
        with attester.tpm:
            asyncio.run(changed(attester))
    finally:
        emulator.terminate()
        emulator.wait(10)
    said = capfd.readouterr().err
    assert "holds another measurement already" in said and "Traceback" not in said
