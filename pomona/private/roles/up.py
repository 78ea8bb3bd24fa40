"""All roles on this machine, each a process of its own, as they are on machines of their own: to try them, and for
tests.

What is in the folder stays: keys, the log, the accounts. The next start goes on with it.
"""

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2

from pomona.api.model import name_of
from pomona.core.errors import UserError
from pomona.core.private_files import read_private, write_private
from pomona.listen.server import bound
from pomona.private.attestation.profiles import PROFILES
from pomona.private.client.reading import Unreachable, read_log
from pomona.private.client.trust import Trust, read_log_trust, write_trust
from pomona.private.roles.enrolment import enrol
from pomona.private.roles.publishing import Publisher, publish
from pomona.private.roles.release import measured, release_of
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import Machine, Release, newest_directory

DAY = 86400
START_SECONDS = 300.0
ISSUER, GATEWAY, ORIGIN = "issuer.localhost", "gateway.localhost", "log.localhost"
KINDS = {"issuer": "issuer-key", "gateway": "gateway-key directory", "operator": "release machine revocation"}
PROFILE = "laptop"


@dataclasses.dataclass(frozen=True)
class Laptop:
    """What is started."""

    folder: Path
    model: Path
    adapters: dict[str, Path]
    nodes: int
    port: int
    """Of the log; the others follow."""
    options: tuple[str, ...] = ()
    """For every node: slots and the like."""
    tokens: int = 1000
    """A day, for the one account."""


def run_laptop(laptop: Laptop, say: Callable[[str], None]) -> None:
    """Starts everything, and runs until SIGINT, SIGTERM, or the first process that ends.

    Raises:
        UserError: a process ended before it could serve, or did not in time.
    """
    _check_ports(laptop)
    laptop.folder.mkdir(parents=True, exist_ok=True)
    keys, account = _keys(laptop.folder), _account(laptop.folder)
    with _Processes(laptop.folder) as processes:
        address = lambda place: f"http://127.0.0.1:{laptop.port + place}"
        folder = lambda name: str(laptop.folder / name)
        processes.start(
            "log", "log", folder("log"), "--origin", ORIGIN, "--writers", folder("writers"), place=laptop.port
        )
        processes.wait(lambda: _answers(address(0) + "/checkpoint"))
        log = ["--log", folder("log/log.json")]
        writer = lambda name: Publisher(address(0), keys[name])
        ours = measured(name_of(laptop.model), laptop.model, laptop.adapters)
        _publish_release(laptop, ours, writer("operator"))
        accounts = ["--accounts", folder("accounts"), "--per-day", str(laptop.tokens)]
        processes.start("issuer", "issuer", folder("issuer"), *log, "--name", ISSUER, *accounts, place=laptop.port + 1)
        processes.start("relay", "relay", address(3) + "/", place=laptop.port + 2)
        nodes = [f"--node={address(4 + number)}" for number in range(laptop.nodes)]
        names = ["--name", GATEWAY, "--issuer-name", ISSUER]
        processes.start("gateway", "gateway", folder("gateway"), *log, *names, *nodes, place=laptop.port + 3)
        adapters = [f"--adapter={name}={path}" for name, path in laptop.adapters.items()]
        for number in range(laptop.nodes):
            tpm = processes.emulator(laptop.folder / f"tpm{number}")
            given = [*log, *adapters, *tpm, *laptop.options, "--image", ours.image]
            name = f"node{number}"
            processes.start(name, "node", str(laptop.model), folder(name), *given, place=laptop.port + 4 + number)
        for number in range(laptop.nodes):
            processes.wait(lambda number=number: _answers(address(4 + number) + "/health"))  # type: ignore[misc]
            if processes.has_emulator:
                _enrol(laptop, address(4 + number), writer("operator"))
        processes.wait(lambda: _listed(laptop) == laptop.nodes)
        trust = Trust(
            log=read_log_trust(laptop.folder / "log/log.json"),
            relay=address(2) + "/",
            issuer=address(1),
            account=account,
            issuer_name=ISSUER,
            gateway_name=GATEWAY,
            profiles=(PROFILE,),
        )
        write_trust(trust, laptop.folder / "client.json")
        attested = "attested by TPM emulators" if processes.has_emulator else "without TPMs: swtpm is not installed"
        say(f"{laptop.nodes} nodes serve {ours.name}, {attested}")
        roles = ("log", "issuer", "relay", "gateway", *(f"node {number + 1}" for number in range(laptop.nodes)))
        say("  " + ", ".join(f"{role} :{laptop.port + place}" for place, role in enumerate(roles)) + " on 127.0.0.1")
        say(f'  pomona private ask --config {laptop.folder}/client.json "Hello"')
        say(f"  pomona private audit --config {laptop.folder}/client.json")
        say(f"  on one machine nothing is private ({PROFILES[PROFILE].reads_requests} can read): pomona private status")
        processes.watch()


class _Processes:
    """What was started, ended in the opposite order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.has_emulator = shutil.which("swtpm") is not None
        self.ending = False

    def __enter__(self) -> "_Processes":
        self._before = {each: signal.signal(each, self._end) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *about: object) -> None:
        for _, process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for _, process in reversed(self.running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.returncode is None:
                process.kill()
                process.wait()
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _end(self, *_: object) -> None:
        self.ending = True

    def start(self, name: str, role: str, *arguments: str, place: int) -> None:
        command = [sys.executable, "-m", "pomona.cli.main", "private", role, *arguments, "--port", str(place)]
        keys = {"POMONA_LOG_KEY": _keys(self.folder).get(name, "")}
        self._run(name, command, os.environ | keys)

    def emulator(self, folder: Path) -> list[str]:
        """The option that names a fresh TPM emulator; nothing where none is installed."""
        if not self.has_emulator:
            return []
        folder.mkdir(exist_ok=True)
        place, control = folder / "socket", folder / "control"
        for each in (place, control):
            each.unlink(missing_ok=True)
        where = ["--server", f"type=unixio,path={place}", "--ctrl", f"type=unixio,path={control}"]
        flags = ["--tpmstate", f"dir={folder}", "--flags", "startup-clear,not-need-init"]
        self._run(folder.name, ["swtpm", "socket", "--tpm2", *where, *flags], dict(os.environ))
        self.wait(place.exists)
        return ["--tpm", f"unix:{place}"]

    def _run(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        with open(self.folder / f"{name}.err", "wb") as errors:
            # In a session of its own: Ctrl-C in the terminal comes to this process, which ends them in their order.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment, start_new_session=True
            )
        self.running.append((name, process))

    def wait(self, ready: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not ready():
            self._check()
            if time.monotonic() - began > START_SECONDS:
                raise UserError(
                    "the roles did not come up in time.", f"what each says is in {self.folder}/*.err.", "look there"
                )
            time.sleep(0.1)

    def watch(self) -> None:
        while not self.ending:
            self._check()
            time.sleep(0.2)

    def _check(self) -> None:
        if self.ending:
            raise KeyboardInterrupt
        for name, process in self.running:
            if process.poll() is not None:
                told = (self.folder / f"{name}.err").read_text(errors="replace").strip().splitlines()
                raise UserError(
                    f"{name} has ended: {' '.join(told[-3:]) or process.returncode}",
                    "all of them have to run.",
                    f"{self.folder}/{name}.err, which has all that it said",
                )


def _check_ports(laptop: Laptop) -> None:
    """Before anything is started: what answers at a port that is taken would be taken for a role."""
    for port in range(laptop.port, laptop.port + 4 + laptop.nodes):
        try:
            bound("127.0.0.1", port).close()
        except UserError as error:
            raise UserError(
                f"port {port} is taken, or is none.",
                f"the roles have {4 + laptop.nodes} ports, from --port on.",
                "another --port, or end what runs there: a private cloud that is up already?",
            ) from error


def _keys(folder: Path) -> dict[str, str]:
    """The keys of those who write into the log, made where there are none."""
    path = folder / "writers"
    if not path.exists():
        lines = [f"{name} {secrets.token_hex(32)} {kinds}\n" for name, kinds in KINDS.items()]
        write_private(path, "".join(lines).encode())
    return {line.split()[0]: line.split()[1] for line in read_private(path).decode().splitlines()}


def _account(folder: Path) -> str:
    path = folder / "accounts"
    if not path.exists():
        write_private(path, f"laptop {secrets.token_hex(32)}\n".encode())
    return read_private(path).decode().split()[1]


def _publish_release(laptop: Laptop, ours, operator: Publisher) -> None:
    now = time.time()
    release = release_of(ours, time.strftime("%Y-%m-%d"), PROFILE, {}, now, 30 * DAY)
    known = read_log(read_log_trust(laptop.folder / "log/log.json"), laptop.folder / "seen", now)
    same = lambda leaf: dataclasses.replace(leaf, not_before=0, expires=1, version="1")
    later = dataclasses.replace(known, now=now + DAY)
    if same(release) not in [same(leaf) for leaf in later.leaves if isinstance(leaf, Release)]:
        publish(operator, [release])


def _enrol(laptop: Laptop, address: str, operator: Publisher) -> None:
    machine = enrol(address, None, "laptop", time.time(), 30 * DAY)
    known = read_log(read_log_trust(laptop.folder / "log/log.json"), laptop.folder / "seen", time.time())
    if machine.key_name not in [leaf.key_name for leaf in known.leaves if isinstance(leaf, Machine)]:
        publish(operator, [machine])


def _listed(laptop: Laptop) -> int:
    """How many nodes the directory in the log has."""
    now = time.time()
    try:
        known = read_log(read_log_trust(laptop.folder / "log/log.json"), laptop.folder / "seen", now)
        return len(newest_directory(known.leaves, now))
    except (Unreachable, TransparencyError):
        return 0


def _answers(address: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(address, timeout=5).status_code == 200
    return False
