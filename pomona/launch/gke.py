"""A run on Google Kubernetes Engine: one JobSet, with a Job for each TPU slice or one for all GPU nodes.

What is left to others: the JobSet controller puts a slice's pods onto one node pool and starts all of them again when
one fails; GKE tells the pods of TPU slices who they are (TPU_WORKER_*, and MEGASCALE_* where there are several slices);
JAX reads that. GPU pods are told here. The run folder is in a bucket that every pod mounts by Cloud Storage FUSE.

Sources: Google Cloud's GKE documentation ("Deploy TPU Multislices", "Plan TPUs", "GPUs in GKE", "Cloud Storage FUSE
CSI driver") for labels, resources, nodes, ports and volumes; jobset.sigs.k8s.io and the JobSet API v1alpha2 for the
policies; the Kubernetes documentation of a Job's podFailurePolicy for the messages that the policies read.
"""

import dataclasses
import re
from typing import Any

from pomona.core.errors import PREEMPTED, USER_ERROR, UserError
from pomona.core.fleet import Fleet, describe
from pomona.launch.job import check_fits, check_name, train_command
from pomona.parallel.placement import check_slices
from pomona.train.config import Run, mesh_option, stage_sizes

JOBSET_VERSION = "0.10"  # the first one whose failure policy reads messages
CONTAINER = "train"
MOUNT = "/bucket"
PORTS = {"google.com/tpu": (8471, 8080, 8482), "nvidia.com/gpu": (8476,)}
"""Of the TPU runtime, of what joins slices, and of JAX's coordinator; the last of them of the latter."""
LONGEST_NAME = 63
RANDOM_SUFFIX = "-xxxxx"  # of a pod's name


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The machines that carry a chip: their label on GKE, and the chips of one that is part of something larger."""

    accelerator: str
    chips: int
    resource: str = "google.com/tpu"


def _gpus(accelerator: str) -> Nodes:
    return Nodes(accelerator, 8, "nvidia.com/gpu")


NODES = {
    "v4": Nodes("tpu-v4-podslice", 4),
    "v5e": Nodes("tpu-v5-lite-podslice", 4),
    "v5p": Nodes("tpu-v5p-slice", 4),
    "v6e": Nodes("tpu-v6e-slice", 4),
    "7x": Nodes("tpu7x", 4),
    "a100-40gb": _gpus("nvidia-tesla-a100"),
    "a100-80gb": _gpus("nvidia-a100-80gb"),
    "h100": _gpus("nvidia-h100-80gb"),
    "h200": _gpus("nvidia-h200-141gb"),
    "b200": _gpus("nvidia-b200"),
}


@dataclasses.dataclass(frozen=True)
class GkeJob:
    """Everything a JobSet says."""

    name: str
    fleet: Fleet
    image: str
    bucket: str
    recipe: str
    settings: tuple[str, ...] = ()
    max_restarts: int = 20
    grace_seconds: int = 600
    environment: tuple[str, ...] = ()
    """NAME=VALUE, for every process."""
    service_account: str | None = None

    @property
    def nodes(self) -> Nodes:
        return NODES[self.fleet.chip.name]

    @property
    def is_gpu(self) -> bool:
        return self.nodes.resource == "nvidia.com/gpu"

    @property
    def hosts_per_slice(self) -> int:
        return max(1, self.fleet.chips_per_slice // self.nodes.chips)

    @property
    def chips_per_host(self) -> int:
        return min(self.nodes.chips, self.fleet.chips_per_slice)

    @property
    def part(self) -> str:
        """The name of the JobSet's one replicated job."""
        return "nodes" if self.is_gpu else "slice"

    @property
    def run(self) -> str:
        """The run folder as the pods see it; a pod's own disk ends with the pod."""
        return "/".join([MOUNT, *self.bucket_and_folder[1:], self.name])

    @property
    def bucket_and_folder(self) -> list[str]:
        """The bucket, and the folder in it if there is one."""
        return self.bucket.removeprefix("gs://").strip("/").split("/", 1)


def check_gke(job: GkeJob, run: Run) -> None:
    """What can be seen to be wrong without a cluster.

    Raises:
        UserError: a name, address, number or variable that Kubernetes would refuse, or a run that does not fit.
    """
    longest_pod = f"-{job.part}-{job.fleet.slices - 1}-{job.hosts_per_slice - 1}{RANDOM_SUFFIX}"
    check_name(job.name, LONGEST_NAME - len(longest_pod))
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^\s/]+)*/?", job.bucket):
        near = re.sub(r"[^a-z0-9._/-]+", "-", re.sub(r"^\w*:/*", "", job.bucket.lower())).strip("/-")
        raise UserError(
            f"--bucket {job.bucket} is no address of a bucket.",
            "the run outlives the pods in a Cloud Storage bucket: gs://, its name in lower case, perhaps a folder.",
            f"--bucket gs://{near if len(near) > 2 else 'my-bucket'}",
        )
    for each in job.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", each, flags=re.DOTALL):
            raise UserError(
                f"--env {each} is no variable.", "a variable is NAME=VALUE.", "--env LIBTPU_INIT_ARGS=--some_flag=true"
            )
    if job.max_restarts < 0 or job.grace_seconds < 1:
        raise UserError(
            f"{job.max_restarts} restarts, {job.grace_seconds} s to save.",
            "restarts are 0 or more; a checkpoint takes time.",
            "--max-restarts 20 --grace-seconds 600",
        )
    if job.fleet.slices > 1 and job.hosts_per_slice == 1:
        raise UserError(
            f"{job.fleet.slices} slices of {job.fleet.chips_per_slice} chips, one host each.",
            f"GKE joins slices of several hosts only, so of more than {job.nodes.chips} chips.",
            f"one larger slice: --chips {job.fleet.chip.name}-N --slices 1",
        )
    for index in range(len(run.stages)):
        sizes = stage_sizes(run, index, job.fleet.devices)
        check_slices(sizes, job.fleet.slices, mesh_option(run, index))
    check_fits(run, job.fleet.devices, "{mesh}.seq {seq}, or {devices} devices")


def jobset(job: GkeJob) -> dict[str, Any]:
    """The JobSet, as plain values."""
    # These endings are named, so that the JobSet can tell them; with a backoffLimit of 0 any other fails the Job too.
    exits = [{"containerName": CONTAINER, "operator": "In", "values": [code]} for code in (USER_ERROR, PREEMPTED)]
    pod_policy: list[dict[str, Any]] = [{"action": "FailJob", "onExitCodes": each} for each in exits]
    pod_policy.append({"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})
    metadata: dict[str, Any] = {"name": job.name}
    if not job.is_gpu:  # a slice is a node pool: its pods go there together, and nobody else's
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    _rule("mistake", "FailJobSet", f"exit code {USER_ERROR} matching"),
                    _rule(
                        "preempted",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        f"exit code {PREEMPTED} matching",
                        "has condition DisruptionTarget",
                    ),
                ],
            },
            "replicatedJobs": [
                {
                    "name": job.part,
                    "replicas": job.fleet.slices,
                    "template": {
                        "spec": {
                            "parallelism": job.hosts_per_slice,
                            "completions": job.hosts_per_slice,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": pod_policy},
                            "template": {
                                "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
                                "spec": _pod(job),
                            },
                        }
                    },
                }
            ],
        },
    }


def _rule(name: str, action: str, *messages: str) -> dict[str, Any]:
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": list(messages),
    }


def _pod(job: GkeJob) -> dict[str, Any]:
    chips = {job.nodes.resource: job.chips_per_host}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.image,
        "command": ["pomona", *train_command(job.recipe, job.run, list(job.settings))],
        "env": _environment(job),
        "ports": [{"containerPort": port} for port in PORTS[job.nodes.resource]],
        "resources": {"requests": chips, "limits": dict(chips)},
        "volumeMounts": [{"name": "bucket", "mountPath": MOUNT}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # the JobSet starts all of them together
        "terminationGracePeriodSeconds": job.grace_seconds,
        "hostNetwork": True,  # between slices and hosts, without a layer in between
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": _selector(job),
        "tolerations": [{"key": job.nodes.resource, "operator": "Exists"}],
        "containers": [container],
        "volumes": [_bucket(job)],
    }
    if job.service_account is not None:
        pod["serviceAccountName"] = job.service_account
    if job.is_gpu:  # NCCL's shared memory; a container has 64 MB of it
        container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
        pod["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    return pod


def _bucket(job: GkeJob) -> dict[str, Any]:
    """The bucket as a volume. What one pod writes the others see at once: they save a checkpoint together."""
    attributes = {
        "bucketName": job.bucket_and_folder[0],
        "mountOptions": "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
        "hostNetworkPodKSA": "true",  # with hostNetwork the driver asks for the pod's own service account so
    }
    return {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _selector(job: GkeJob) -> dict[str, str]:
    if job.is_gpu:
        return {"cloud.google.com/gke-accelerator": job.nodes.accelerator}
    return {
        "cloud.google.com/gke-tpu-accelerator": job.nodes.accelerator,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, job.fleet.topology)),
    }


def _environment(job: GkeJob) -> list[dict[str, Any]]:
    """Variables: the first platform is used or it is an error, never a silent CPU; for GPU nodes, who is who."""
    values = {"JAX_PLATFORMS": "cuda,cpu" if job.is_gpu else "tpu,cpu", "PYTHONUNBUFFERED": "1"}
    index: list[dict[str, Any]] = []
    if job.is_gpu:
        values["LD_LIBRARY_PATH"] = "/usr/local/nvidia/lib64"  # where GKE puts the driver
        values["JAX_COORDINATOR_ADDRESS"] = f"{job.name}-{job.part}-0-0.{job.name}:{PORTS['nvidia.com/gpu'][-1]}"
        values["JAX_NUM_PROCESSES"] = str(job.hosts_per_slice)
        field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        index.append({"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": field}}})
    values |= dict(each.split("=", 1) for each in job.environment)
    return [{"name": name, "value": value} for name, value in values.items()] + index


def render(job: GkeJob) -> str:
    """The JobSet as YAML, with a heading that says how to use it."""
    import yaml

    heading = f"""\
# pomona {job.recipe} on {describe(job.fleet)}: {job.fleet.slices * job.hosts_per_slice} pods
# start:  kubectl apply -f FILE      (JobSet {JOBSET_VERSION} or later is installed in the cluster)
# watch:  kubectl logs --follow {job.name}-{job.part}-0-0-... (kubectl get pods lists the names)
# end:    kubectl delete jobset {job.name}; the same file goes on after the newest checkpoint
# run:    {job.bucket.rstrip("/")}/{job.name}
"""
    return heading + yaml.safe_dump(jobset(job), sort_keys=False, width=120)
