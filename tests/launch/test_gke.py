"""The JobSet: every field is one of the published API; it says what the fleet, the run and the exit codes ask for."""

import copy
import json
import re

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import ValidationError

from pomona.cli.main import main
from pomona.cli.train_verb import resolve
from pomona.core.chips import CHIPS
from pomona.core.fleet import Fleet, parse_fleet
from pomona.launch.gke import NODES, GkeJob, jobset
from pomona.recipes.registry import HARDWARE

IMAGE = ["--image", "europe-docker.pkg.dev/mine/pomona:1"]
SERVER = ["launch", "gke", "afm_server", "--chips", "v4:8x8x16", "--slices", "8", *IMAGE]
GPUS = ["launch", "gke", "afm_85m", "--chips", "h100-16", *IMAGE]
BUCKET = ["--bucket", "gs://mine/runs"]
ACTIONS = {
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
}  # an enumeration of the CRD


def check_published(document):
    """Against the models that are generated from the published OpenAPI schemas of Kubernetes and JobSet.

    They take unknown fields silently and lose them, so what comes back has to be what went in.
    """
    document = copy.deepcopy(document)
    for container in containers(document):
        for quantities in container["resources"].values():
            for name, value in quantities.items():
                assert re.fullmatch(r"\d+(\.\d+)?(m|[KMGTPE]i?)?", str(value)), (name, value)
                quantities[name] = {}  # the model of a quantity has no field
    read = JobsetV1alpha2JobSet.model_validate(document)
    assert read.model_dump(by_alias=True, exclude_unset=True) == document
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def job_of(document):
    (part,) = document["spec"]["replicatedJobs"]
    return part["template"]["spec"]


def pod_of(document):
    return job_of(document)["template"]["spec"]


def containers(document):
    return pod_of(document)["containers"]


def printed(arguments, capsys):
    assert main([*arguments, *BUCKET, "--output", "-"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def environment(document):
    return {each["name"]: each.get("value") for each in containers(document)[0]["env"]}


@pytest.mark.parametrize("arguments", [SERVER, GPUS], ids=["tpu", "gpu"])
def test_every_field_is_one_of_the_published_api(arguments, capsys):
    check_published(printed([*arguments, "--service-account", "trainer", "--env", "A=b"], capsys))


def misspelt(document):
    yield "a field of the JobSet", document["spec"], "failurePolicies", {}
    yield "a field of a rule", document["spec"]["failurePolicy"]["rules"][0], "onJobFailureReason", ["PodFailurePolicy"]
    yield "a field of the Job", job_of(document), "parallellism", 4
    yield "a field of the pod", pod_of(document), "nodeSelectors", {}
    yield "a field of a volume", pod_of(document)["volumes"][0]["csi"], "attributes", {}
    yield "a field of a container", containers(document)[0], "cmd", []
    yield "a text for a number", job_of(document), "completions", "256"
    yield "a number for a text", containers(document)[0]["env"][0], "value", 1
    yield "a port of text", containers(document)[0]["ports"][0], "containerPort", "8471"


def test_the_check_refuses_what_kubernetes_would(capsys):
    document = printed(SERVER, capsys)
    cases = [name for name, *_ in misspelt(document)]
    assert len(cases) == 9
    for index, name in enumerate(cases):
        broken = copy.deepcopy(document)
        _, place, field, value = list(misspelt(broken))[index]
        place[field] = value
        with pytest.raises((AssertionError, ValidationError)):
            check_published(broken)
            print(name)


def test_eight_slices_of_1024_chips_are_eight_jobs_of_256_hosts(capsys):
    """Apple's fleet. Four chips of a v4 are on one host (Google Cloud's documentation)."""
    document = printed(SERVER, capsys)
    (part,) = document["spec"]["replicatedJobs"]
    job, pod = job_of(document), pod_of(document)
    assert (part["name"], part["replicas"]) == ("slice", 8)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (256, 256, "Indexed")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8x16",
    }
    (container,) = containers(document)
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    exclusive = document["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"
    assert document["spec"]["network"]["subdomain"] == document["metadata"]["name"] == "afm-server"
    assert environment(document)["JAX_PLATFORMS"] == "tpu,cpu"
    assert not any(name.startswith(("MEGASCALE", "TPU_WORKER")) for name in environment(document)), "GKE's own"


def test_gpu_nodes_are_told_who_they_are(capsys):
    document = printed(GPUS, capsys)
    (part,) = document["spec"]["replicatedJobs"]
    assert (part["replicas"], job_of(document)["parallelism"]) == (1, 2)
    assert pod_of(document)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = containers(document)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    told = environment(document)
    port = container["ports"][0]["containerPort"]
    # JobSet names a pod JOBSET-JOB-INDEX-POD and makes the JobSet's name the subdomain.
    assert told["JAX_COORDINATOR_ADDRESS"] == f"afm-85m-{part['name']}-0-0.{document['metadata']['name']}:{port}"
    assert (told["JAX_NUM_PROCESSES"], told["JAX_PLATFORMS"]) == ("2", "cuda,cpu")
    (index,) = (each for each in container["env"] if each["name"] == "JAX_PROCESS_ID")
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]


# What the Job controller says, by Kubernetes' documentation of podFailurePolicy; the JobSet's rules read it.
MESSAGES = {
    2: ("FailJobSet", "Container train for pod default/a-slice-0-0-x failed with exit code 2 matching FailJob rule"),
    75: (
        "RestartJobSetAndIgnoreMaxRestarts",
        "Container train for pod default/a-slice-0-0-x failed with exit code 75 matching FailJob rule at index 1",
    ),
    "disrupted": (
        "RestartJobSetAndIgnoreMaxRestarts",
        "Pod default/a-slice-0-0-x has condition DisruptionTarget matching FailJob rule at index 2",
    ),
}


def ending(document, code):
    """What a cluster does about a pod that ends so: the two policies, evaluated by hand as their documents say."""
    failure = "BackoffLimitExceeded"  # of a Job whose backoffLimit is 0
    for rule in job_of(document)["podFailurePolicy"]["rules"]:
        exits, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        matches = (
            code in exits["values"] if exits else code == "disrupted" and conditions[0]["type"] == "DisruptionTarget"
        )
        if matches:
            assert rule["action"] == "FailJob"
            failure = "PodFailurePolicy"
    message = MESSAGES[code][1] if code in MESSAGES else "Job has reached the specified backoff limit"
    for rule in document["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if failure in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            assert rule["action"] in ACTIONS
            return rule["action"]
    return "RestartJobSet"  # the default, up to maxRestarts


def test_a_mistake_ends_the_jobset_a_preemption_restarts_it_for_free_and_all_else_up_to_a_limit(capsys):
    document = printed([*SERVER, "--max-restarts", "7"], capsys)
    assert ending(document, 2) == "FailJobSet"
    assert ending(document, 75) == ending(document, "disrupted") == "RestartJobSetAndIgnoreMaxRestarts"
    assert ending(document, 124) == ending(document, 1) == ending(document, 137) == "RestartJobSet"
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert (job_of(document)["backoffLimit"], pod_of(document)["restartPolicy"]) == (0, "Never"), (
        "both policies need it"
    )


def test_a_pod_has_time_to_save_and_keeps_its_run_in_the_bucket(capsys):
    document = printed([*SERVER, "--grace-seconds", "900", "--service-account", "trainer"], capsys)
    pod, (container,) = pod_of(document), containers(document)
    assert (pod["terminationGracePeriodSeconds"], pod["serviceAccountName"]) == (900, "trainer")
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "mine"
    assert (volume["name"], mount["mountPath"]) == (mount["name"], "/bucket")
    assert job_of(document)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    command = container["command"]
    assert command[command.index("--run") + 1] == "/bucket/runs/afm-server"


@pytest.mark.parametrize("name", ["afm_server", "afm_device", "afm_device_parent"])
def test_every_fleet_s_recipe_starts_there_as_it_is(name, capsys):
    fleet = HARDWARE[name].fleet
    shape = "x".join(map(str, fleet.topology))
    chips = ["--chips", f"{fleet.chip.name}:{shape}", "--slices", str(fleet.slices)]
    (container,) = containers(printed(["launch", "gke", name, *chips, *IMAGE], capsys))
    assert container["command"][:3] == ["pomona", "train", name]


def test_the_pods_train_exactly_the_run_that_was_asked_for(capsys):
    settings = ["--stages.0.steps", "12000", "optimizer:adam-w", "--data.sources.0.address", "/bucket/data/*.txt"]
    document = printed([*SERVER, *settings, "--name", "mine", "--env", "A=b=c", "--env", "D=e"], capsys)
    program, verb, *words = containers(document)[0]["command"]
    assert (program, verb, document["metadata"]["name"]) == ("pomona", "train", "mine")
    typed, _ = resolve(words[0], words[1:])
    assert typed == resolve("afm_server", settings)[0]
    assert environment(document)["A"] == "b=c" and environment(document)["D"] == "e"


def test_a_file_is_written_once_and_says_the_next_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SERVER, *BUCKET]) == 0
    assert "next: kubectl apply -f afm-server.yaml" in capsys.readouterr().out
    written = (tmp_path / "afm-server.yaml").read_text()
    check_published(yaml.safe_load(written))
    assert "gs://mine/runs/afm-server" in written and json.dumps(yaml.safe_load(written))
    assert main([*SERVER, *BUCKET]) == 2
    assert "afm-server.yaml exists already" in capsys.readouterr().err
    assert (tmp_path / "afm-server.yaml").read_text() == written


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_that_can_be_planned_can_be_launched(name):
    chip = CHIPS[name]
    shape = {3: (2, 2, 4), 2: (4, 4), 0: (16,)}[chip.torus_dimensions]
    job = GkeJob("a", Fleet(chip, shape), "image", "gs://mine", "tiny")
    document = jobset(job)
    check_published(document)
    resource = "google.com/tpu" if chip.torus_dimensions else "nvidia.com/gpu"
    per_host = containers(document)[0]["resources"]["limits"][resource]
    assert per_host * job_of(document)["parallelism"] == 16
    assert set(NODES) == set(CHIPS)


def test_one_host_asks_for_the_chips_it_has():
    for text, chips in (("v5e-1", 1), ("v5e-4", 4), ("h100-2", 2), ("v5p:2x2x1", 4)):
        document = jobset(GkeJob("a", parse_fleet(text), "image", "gs://mine", "tiny"))
        assert job_of(document)["parallelism"] == 1
        assert list(containers(document)[0]["resources"]["limits"].values()) == [chips], text
