"""The recipe for real machines: what it starts parses, what it forbids is there, and it names nobody."""

import configparser
import copy
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import yaml
from kubeflow_trainer_api.models.io_k8s_api_core_v1_persistent_volume_claim import IoK8sApiCoreV1PersistentVolumeClaim
from kubeflow_trainer_api.models.io_k8s_api_core_v1_pod_template_spec import IoK8sApiCoreV1PodTemplateSpec
from kubeflow_trainer_api.models.io_k8s_api_core_v1_service import IoK8sApiCoreV1Service

from pomona.cli import private_publishing, private_roles
from pomona.cli.parse import parse
from pomona.cli.private_verb import VERBS
from pomona.core.errors import UserError
from pomona.private.client.reading import read_log
from pomona.private.client.trust import Trust, read_log_trust, read_trust
from pomona.private.roles.fleet import DIRECTORY_SECONDS
from pomona.private.roles.gateway_keys import KEY_DAYS, prepare_gateway_keys, published_config
from pomona.private.roles.log import REFRESH_SECONDS
from pomona.private.roles.node_keys import KEY_SECONDS
from pomona.private.roles.publishing import Publisher, publish
from pomona.private.transparency.leaves import Machine
from pomona.private.transparency.note import encode_vkey, generate_signer, verifier_of
from pomona.private.transparency.view import MAX_AGE_SECONDS, MAX_AHEAD_SECONDS

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/private"
UNITS = sorted((FOLDER / "systemd").glob("*.service"))
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
FILES = [each for each in FOLDER.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
ROLES = ("gateway", "issuer", "log", "node", "relay")
OPTIONS = {
    "log": private_roles.LogOptions,
    "issuer": private_roles.IssuerOptions,
    "relay": private_roles.RelayOptions,
    "gateway": private_roles.GatewayOptions,
    "node": private_roles.NodeOptions,
    "release": private_publishing.ReleaseOptions,
    "revoke": private_publishing.RevokeOptions,
    "enrol": private_publishing.EnrolOptions,
}
CODE_OF_VARIABLES = (ROOT / "pomona/cli/private_publishing.py", ROOT / "pomona/serve/remote.py")

# What a unit says, and what it has to say; a node alone differs, and its unit says why.
SAID = """
DynamicUser=yes LimitCORE=0 NoNewPrivileges=yes CapabilityBoundingSet= AmbientCapabilities= UMask=0077 PrivateTmp=yes
ProtectSystem=strict ProtectHome=yes ProtectProc=invisible ProtectKernelTunables=yes ProtectKernelModules=yes
ProtectKernelLogs=yes ProtectControlGroups=yes RestrictNamespaces=yes RestrictRealtime=yes RestrictSUIDSGID=yes
LockPersonality=yes SystemCallArchitectures=native IPAddressDeny=any Restart=on-failure
"""
HARDENING = {"RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX"} | dict(each.split("=") for each in SAID.split())
BUT_FOR_NODES = {"MemoryDenyWriteExecute": "yes", "PrivateDevices": "yes", "ProcSubset": "pid"}


class Many(dict):
    """Values of a key that is given several times, which INI's reader would lose."""

    def __setitem__(self, key, value):
        if isinstance(value, list) and key in self:
            value = [*self[key], *value]
        super().__setitem__(key, value)


def read_unit(path):
    """Sections, and in them a list of values for each key."""
    reader = configparser.RawConfigParser(dict_type=Many, strict=False, delimiters=("=",), comment_prefixes=("#",))
    reader.optionxform = str
    reader.read_string(path.read_text())
    return {name: {key: value.split("\n") for key, value in reader[name].items()} for name in reader.sections()}


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def everything(kind):
    return [each for path in MANIFESTS for each in documents(path) if each.get("kind") == kind]


def workloads():
    return [*everything("Deployment"), *everything("StatefulSet"), *everything("Job")]


def role_of(path):
    return path.stem.removeprefix("pomona-")


def commands():
    """(where, arguments after `pomona`) of all that is started."""
    for path in UNITS:
        (line,) = read_unit(path)["Service"]["ExecStart"]
        program, *arguments = shlex.split(line)
        assert program == "/opt/pomona/bin/pomona"
        yield path.name, arguments
    for path in MANIFESTS:
        for document in documents(path):
            if "template" in document.get("spec", {}):
                (container,) = document["spec"]["template"]["spec"]["containers"]
                assert "command" not in container  # the image says what is started
                yield path.name, container["args"]
    for block in re.findall(r"^ {4,}(?:POMONA_LOG_KEY=\S+ )?pomona (private .*)", readme(), re.MULTILINE):
        yield "README.md", shlex.split(block)


def readme():
    return (FOLDER / "README.md").read_text().replace("\\\n", " ")


@pytest.mark.parametrize(("where", "arguments"), list(commands()), ids=lambda value: str(value)[:60])
def test_what_is_started_parses(where, arguments):
    private, verb, *rest = arguments
    assert private == "private" and verb in VERBS
    if verb in OPTIONS:
        read = parse(OPTIONS[verb], rest, f"private {verb}")
        for name in ("issuer_name", "name", "origin"):
            assert "localhost" not in str(getattr(read, name, ""))  # the defaults are for one machine
        with pytest.raises(UserError):
            parse(OPTIONS[verb], [*rest, "--no-such-option", "1"], f"private {verb}")


def test_every_role_has_a_unit_and_a_manifest():
    assert [role_of(path) for path in UNITS] == sorted(ROLES)
    assert {path.stem for path in MANIFESTS} >= set(ROLES)
    for where, (_, verb, *_rest) in commands():
        if where.endswith(".service"):
            assert where == f"pomona-{verb}.service"


def test_roles_find_each_other():
    """A port that a unit listens at, a manifest's container and its service are the same; names agree everywhere."""
    ports, names = {}, set()
    for where, (_, verb, *rest) in commands():
        if where.endswith((".service", ".yaml")) and verb in ROLES:
            read = parse(OPTIONS[verb], rest, verb)
            ports.setdefault(verb, set()).add(read.port)
            names |= {("issuer", getattr(read, "issuer_name", "issuer.example"))}
            if verb != "node" and hasattr(read, "name"):
                names.add((verb, read.name))
    assert all(len(each) == 1 for each in ports.values()) and len(ports) == len(ROLES)
    assert names == {("issuer", "issuer.example"), ("gateway", "gateway.example")}
    for each in everything("Deployment") + everything("StatefulSet"):
        role = each["metadata"]["name"]
        (port,) = each["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert {port["containerPort"]} == ports[role]
        (service,) = [one for one in everything("Service") if one["metadata"]["name"] == role]
        assert service["spec"]["selector"] == {"app": role} and service["spec"]["ports"][0]["port"] in ports[role]


# --- systemd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened(path):
    unit = read_unit(path)
    assert set(unit) == {"Unit", "Service", "Install"}
    service, wanted = unit["Service"], HARDENING | ({} if role_of(path) == "node" else BUT_FOR_NODES)
    assert {key: service.get(key, ["absent"])[0] for key in wanted} == wanted
    assert service["SystemCallFilter"][0] == "@system-service" and "@privileged" in service["SystemCallFilter"][1]
    assert not any(each.startswith("+") or "!" in each for each in service["ExecStart"])
    if role_of(path) == "node":
        assert service["DeviceAllow"] == ["/dev/tpmrm0 rw"] and service["DevicePolicy"] == ["closed"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_itself_takes_a_unit(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    there = tmp_path / path.name  # the program is not where the unit has it: another stands in
    there.write_text(path.read_text().replace("/opt/pomona/bin/pomona", sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", there], capture_output=True, text=True)
    told = [line for line in found.stderr.splitlines() if path.name in line]
    assert (found.returncode, told) == (0, [])
    there.write_text(there.read_text().replace("ProtectSystem=strict", "ProtectSystems=strict"))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", there], capture_output=True, text=True)
    assert "ProtectSystems" in found.stderr  # it would have said so


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def check_published(model, document):
    """Against the models that are generated from the published schemas; they lose unknown fields, so what comes back
    has to be what went in."""
    document = copy.deepcopy(document)
    for each in quantities(document):
        for name in each:
            assert re.fullmatch(r"\d+(\.\d+)?(m|[KMGTPE]i?)?", str(each[name])), each
            each[name] = {}  # the model of a quantity has no field
    assert model.model_validate(document).model_dump(by_alias=True, exclude_unset=True) == document


def quantities(document):
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("requests", "limits"):
                yield value
            else:
                yield from quantities(value)
    if isinstance(document, list):
        for each in document:
            yield from quantities(each)


def test_every_field_is_one_of_the_published_api():
    for each in workloads():
        template = copy.deepcopy(each["spec"]["template"])
        for container in template["spec"]["containers"]:  # a port by its name, which this model cannot hold
            for check in ("httpGet", "tcpSocket"):
                if check in container.get("readinessProbe", {}):
                    assert container["readinessProbe"][check].pop("port") == container["ports"][0]["name"]
                    container["readinessProbe"][check]["port"] = {}
        for volume in template["spec"].get("volumes", ()):
            if "sizeLimit" in volume.get("emptyDir", {}):
                assert re.fullmatch(r"\d+Gi", volume["emptyDir"]["sizeLimit"])
                volume["emptyDir"]["sizeLimit"] = {}
        check_published(IoK8sApiCoreV1PodTemplateSpec, template)
    for each in everything("PersistentVolumeClaim"):
        check_published(IoK8sApiCoreV1PersistentVolumeClaim, each)
    for each in copy.deepcopy(everything("Service")):
        each["spec"]["ports"] = [
            {**port, "targetPort": {}} if "targetPort" in port else port for port in each["spec"]["ports"]
        ]
        check_published(IoK8sApiCoreV1Service, each)


def test_kinds_that_have_no_model_have_known_fields():
    fields = {
        "Deployment": {"replicas", "strategy", "selector", "template"},
        "StatefulSet": {"replicas", "serviceName", "podManagementPolicy", "selector", "template"},
        "Job": {"backoffLimit", "template"},
        "NetworkPolicy": {"podSelector", "policyTypes", "ingress", "egress"},
        "ValidatingAdmissionPolicy": {"failurePolicy", "matchConstraints", "validations"},
        "ValidatingAdmissionPolicyBinding": {"policyName", "validationActions", "matchResources"},
    }
    versions = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "Job": "batch/v1"} | {
        "NetworkPolicy": "networking.k8s.io/v1"
    }
    kinds = {document["kind"] for path in MANIFESTS for document in documents(path) if "kind" in document}
    assert kinds == {*fields, "Namespace", "PersistentVolumeClaim", "Service"}
    for kind, known in fields.items():
        for each in everything(kind):
            assert set(each) == {"apiVersion", "kind", "metadata", "spec"} and set(each["spec"]) <= known
            assert each["apiVersion"] == versions.get(kind, "admissionregistration.k8s.io/v1")
            if kind in ("Deployment", "StatefulSet"):
                wanted = each["spec"]["selector"]["matchLabels"].items()
                assert wanted <= each["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("workload", workloads(), ids=lambda each: each["metadata"]["name"])
def test_a_pod_is_hardened(workload):
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
    claims = [each for each in pod.get("volumes", ()) if "persistentVolumeClaim" in each and each["name"] == "state"]
    for volume in pod.get("volumes", ()):
        assert set(volume) - {"name"} <= {"persistentVolumeClaim", "configMap", "secret", "emptyDir"}
        if "emptyDir" in volume:
            assert volume["emptyDir"]["medium"] == "Memory"
    if claims:  # keys that the group may read are refused
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        assert workload["spec"]["strategy"] == {"type": "Recreate"} and workload["spec"]["replicas"] == 1


def test_operators_are_apart_and_nobody_reaches_what_he_need_not():
    spaces = {each["metadata"]["name"]: each["metadata"]["namespace"] for each in workloads()}
    assert len({spaces[role] for role in ("relay", "gateway", "issuer", "log")}) == 4
    assert spaces["node"] == spaces["gateway"]
    policies = {each["metadata"]["name"]: each["spec"] for each in everything("NetworkPolicy")}
    shut = [each for each in everything("NetworkPolicy") if each["spec"]["podSelector"] == {}]
    assert {each["metadata"]["namespace"] for each in shut} == set(spaces.values())
    assert all("ingress" not in each["spec"] and "egress" not in each["spec"] for each in shut)
    asking = [
        peer["podSelector"]["matchLabels"]["app"] for rule in policies["node"]["ingress"] for peer in rule["from"]
    ]
    assert asking == ["gateway", "enrol"]
    assert policies["node"]["egress"] == [{"to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}], "ports": [{"port": 443}]}]
    assert policies["log"]["egress"] == []
    for each in everything("NetworkPolicy"):
        assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_patch_for_confidential_nodes_changes_what_it_says():
    (patch,) = documents(FOLDER / "kubernetes/node-confidential.yaml")
    (node,) = everything("StatefulSet")
    patched, plain = patch["spec"]["template"]["spec"], node["spec"]["template"]["spec"]
    assert patched["runtimeClassName"] and set(patched) == {"runtimeClassName", "containers"}
    assert [each for each in patched["containers"][0]["args"] if each != "--processor"] == plain["containers"][0][
        "args"
    ]
    assert parse(private_roles.NodeOptions, patched["containers"][0]["args"][2:], "private node").processor


# --- both -----------------------------------------------------------------------------------------------------------


def test_variables_are_ones_that_the_product_reads():
    named = {
        each["name"] for one in workloads() for each in one["spec"]["template"]["spec"]["containers"][0].get("env", ())
    }
    for path in UNITS:
        named |= {each.partition("=")[0] for each in read_unit(path)["Service"].get("Environment", ())}
        named |= set(re.findall(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?==)", path.read_text()))
    read = "".join(each.read_text() for each in CODE_OF_VARIABLES)
    assert named == {"POMONA_LOG_KEY", "XDG_CACHE_HOME"}
    assert all(f'"{each}"' in read for each in named)


def test_there_is_no_secret_and_nobody_is_named():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"\b[0-9a-f]{40,}\b|BEGIN [A-Z ]*PRIVATE|PRIVATE\+KEY", text), path
        for address in re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text):
            assert address.startswith("192.0.2.") or address in ("0.0.0.0", "127.0.0.1"), (path, address)
        for host in re.findall(r"https?://([A-Za-z0-9.-]+)", text):
            assert host.endswith(".example") or re.fullmatch(r"node-\d\.node|127\.0\.0\.1|192\.0\.2\.\d+", host), host
        assert "tensor" not in text
    for each in workloads():
        for variable in each["spec"]["template"]["spec"]["containers"][0].get("env", ()):
            assert "value" not in variable or variable["name"] == "XDG_CACHE_HOME"
    assert not everything("Secret") and not everything("ConfigMap")


def test_the_readme_has_the_numbers_of_the_code():
    text = readme()
    assert MAX_AGE_SECONDS == 24 * 3600 and "24 hours" in text
    assert MAX_AHEAD_SECONDS == 300 and "5 minutes" in text
    assert REFRESH_SECONDS == 600 and "10 minutes" in text
    assert KEY_SECONDS == 24 * 3600 and "half of their 24 hours" in text
    assert DIRECTORY_SECONDS == 2 * 3600 and "2 hours" in text
    assert KEY_DAYS == 3 and "good for 3" in text


def test_the_readme_has_settings_that_a_client_reads(tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "client.json"
    path.write_text(block.replace("VKEY", encode_vkey(verifier_of(generate_signer("log.example")))))
    path.chmod(0o600)
    read = read_trust(path)
    assert isinstance(read, Trust) and read.gateway_name == "gateway.example" and read.issuer_name == "issuer.example"


def test_a_gateways_keys_change_by_the_clock(tmp_path):
    """Each day a key; three are good; the fourth day deletes the first."""
    day = 86400.0
    begun = [prepare_gateway_keys(tmp_path, (20000 + number) * day + 5) for number in range(4)]
    assert [sorted(each) for each in begun] == [[20000], [20000, 20001], [20000, 20001, 20002], [20001, 20002, 20003]]
    assert len(list(tmp_path.glob("*.key"))) == 3
    leaf = published_config("gateway.example", 20001, begun[3][20001])
    assert (leaf.not_before, leaf.expires) == (20001 * day, 20004 * day)
    # The last second of a day makes no key of the next; two starts on one day have the same.
    assert sorted(prepare_gateway_keys(tmp_path, 20004 * day - 1)) == [20001, 20002, 20003]
    assert begun[3][20003].config == prepare_gateway_keys(tmp_path, 20003 * day + 9)[20003].config


def test_what_is_revoked_no_longer_counts(tmp_path):
    """Against a log that runs as the unit has it, with credentials in a folder."""
    (tmp_path / "writers").write_text("operator good-key machine revocation\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = read_unit(FOLDER / "systemd/pomona-log.service")["Service"]["ExecStart"][0]
    line = line.replace("%S", str(tmp_path)).replace("%d", str(tmp_path)).replace("8710", str(port))
    line = line.replace("https://log.example", f"http://127.0.0.1:{port}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "POMONA_LOG_KEY": "good-key"}
    command = [sys.executable, "-m", "pomona.cli.main", *shlex.split(line)[1:]]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        trust = _settings(tmp_path / "pomona-log/log.json", port)
        now = int(time.time())
        ours, other = "000b" + "11" * 32, "000b" + "22" * 32
        machines = [
            Machine(not_before=now - age, expires=now + 900, key_name=name, enrolled_by="operations")
            for age, name in ((20, ours), (10, ours), (5, other))  # enrolled twice: both have to go
        ]
        publish(Publisher(trust.address, "good-key"), machines)
        assert len(read_log(trust, tmp_path / "seen", time.time()).leaves) == 3
        settings = str(tmp_path / "pomona-log/log.json")
        revoke = [*command[:3], "private", "revoke", "machine", ours, "--reason", "stolen", "--log", settings]
        done = subprocess.run(revoke, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count(ours) == 2, done.stderr
        left = [each for each in read_log(trust, tmp_path / "seen", time.time()).leaves if isinstance(each, Machine)]
        assert [each.key_name for each in left] == [other]
        again = subprocess.run(revoke, env=environment, capture_output=True, text=True)
        assert again.returncode == 2 and "no machine" in again.stderr
    finally:
        process.terminate()
        process.wait(20)


def _settings(path, port):
    for _ in range(200):
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/checkpoint").status_code == 200:
                return read_log_trust(path)
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("the log did not start")
