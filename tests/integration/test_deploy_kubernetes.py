"""`authsvc deploy k8s`: the manifests fit Kubernetes' own schemas and one another, and what a pod is given is enough.

There is no cluster here: the pod is a process of the image that tests/support/image.py makes.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import requests
import yaml
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]

from tests.support.databases import POSTGRESQL, database
from tests.support.image import Image
from tests.support.secret_mount import SecretMount
from tests.support.service import APPID, ISSUER, SECRET, Running, authsvc, longest_stop_s

Manifest = dict[str, Any]

# What is left for the main process to end in.
SLACK_S: Final = 5
# A store that is lost: its connection is found dead (4 s), another one is tried (2 s), or waited for (3 s).
STORE_S: Final = 9
FOLLOW_WITHIN_S: Final = 30


def _print(tmp_path: Path, *options: str) -> str:
    done = authsvc("deploy", "k8s", "--appid", APPID, "--issuer", ISSUER, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def printed(tmp_path: Path) -> str:
    return _print(tmp_path)


@pytest.fixture
def manifests(printed: str) -> dict[str, Manifest]:
    """By kind, of which there is one each."""
    found = list(yaml.safe_load_all(printed))
    by_kind = {manifest["kind"]: manifest for manifest in found}
    assert len(by_kind) == len(found)
    return by_kind


@pytest.fixture
def pod(manifests: dict[str, Manifest]) -> Manifest:
    spec: Manifest = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    (container,) = pod["containers"]
    assert isinstance(container, dict)
    return container


# ---- what they say ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", sorted(set(all_versions())))
def test_the_manifests_fit_the_schemas_of_kubernetes_and_have_no_field_that_it_does_not_know(
    manifests: dict[str, Manifest], version: str
) -> None:
    assert set(manifests) == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_pod_is_as_the_restricted_pod_security_standard_wants_it(pod: Manifest, container: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}


def test_a_service_of_the_same_name_puts_no_setting_into_the_pod(manifests: dict[str, Manifest], pod: Manifest) -> None:
    assert manifests["Service"]["metadata"]["name"] == "authsvc"
    assert pod["enableServiceLinks"] is False


def test_nothing_but_tmp_can_be_written(pod: Manifest, container: Manifest) -> None:
    kinds = {volume["name"]: set(volume) - {"name"} for volume in pod["volumes"]}
    mounts = container["volumeMounts"]
    assert {mount["name"] for mount in mounts} == set(kinds)
    assert [mount["mountPath"] for mount in mounts if not mount.get("readOnly")] == ["/tmp"]
    assert kinds.pop("tmp") == {"emptyDir"}
    assert set().union(*kinds.values()) == {"secret"}


def test_the_keys_are_mounted_whole_and_open_to_the_group_of_the_pod_alone(pod: Manifest, container: Manifest) -> None:
    (keys,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "keys")
    assert "subPath" not in keys, "such a mount is never updated"
    assert volume["secret"] == {"secretName": "authsvc-keys", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_the_user_is_that_of_the_image(pod: Manifest, image: Image) -> None:
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == image.user


def test_everything_that_selects_pods_selects_these(manifests: dict[str, Manifest]) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (spread,) = manifests["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels


def test_every_port_is_the_one_that_the_service_listens_on(manifests: dict[str, Manifest], container: Manifest) -> None:
    (port,) = container["ports"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (str(port["containerPort"]), environment["AUTHSVC_HOST"]) == (environment["AUTHSVC_PORT"], "0.0.0.0")
    (service,) = manifests["Service"]["spec"]["ports"]
    (let_in,) = manifests["NetworkPolicy"]["spec"]["ingress"]
    asked = [container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {service["targetPort"], let_in["ports"][0]["port"], *asked} == {port["name"]}


def test_a_pod_may_ask_for_names_wechat_and_stores_on_their_usual_ports(manifests: dict[str, Manifest]) -> None:
    assert manifests["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (let_out,) = manifests["NetworkPolicy"]["spec"]["egress"]
    by_tcp = {53, 443, 5432, 3306, 6379, 26379}
    assert {(p["port"], p["protocol"]) for p in let_out["ports"]} == {(53, "UDP"), *((port, "TCP") for port in by_tcp)}


def test_two_pods_share_the_load_and_one_is_always_there(manifests: dict[str, Manifest]) -> None:
    assert manifests["Deployment"]["spec"]["replicas"] == 2
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert manifests["PodDisruptionBudget"]["spec"]["minAvailable"] == 1


def test_liveness_asks_for_less_than_readiness_and_readiness_waits_for_a_store_that_is_lost(
    container: Manifest,
) -> None:
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["timeoutSeconds"] > STORE_S


def test_a_pod_that_goes_is_out_of_the_service_before_it_ends_and_has_time_to_answer(
    pod: Manifest, container: Manifest
) -> None:
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, int(seconds) >= 5) == ("sleep", True)
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + longest_stop_s() + SLACK_S


def test_no_secret_is_in_the_text_and_those_that_pods_want_are_the_ones_that_it_says_how_to_make(
    printed: str, pod: Manifest, container: Manifest
) -> None:
    wanted = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    from_secrets = [variable["valueFrom"]["secretKeyRef"] for variable in container["env"] if "valueFrom" in variable]
    assert from_secrets == [{"name": "authsvc", "key": "store"}]
    assert wanted == set(re.findall(r"kubectl create secret generic (\S+) --", printed)) == {"authsvc", "authsvc-keys"}
    assert "kind: Secret" not in printed


def test_image_issuer_and_proxies_are_what_was_said(tmp_path: Path) -> None:
    options = ("--image", "registry.example.com/authsvc:1", "--trusted-proxies", "3")
    (deployment, *_) = yaml.safe_load_all(_print(tmp_path, *options))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == "registry.example.com/authsvc:1"
    said = [environment[f"AUTHSVC_{name}"] for name in ("APPID", "ISSUER", "TRUSTED_PROXIES")]
    assert said == [APPID, ISSUER, "3"]


# ---- what they do -------------------------------------------------------------------------------


@contextlib.contextmanager
def _mounts() -> Iterator[Path]:
    """A folder for volumes: the user of the image may go through it, and not write to it."""
    folder = Path(tempfile.mkdtemp(prefix="authsvc-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _read_only(image: Image) -> Iterator[None]:
    """The working folder too, which is a volume where there is one host."""
    folder = image.emptied()
    found = folder.stat()
    folder.chmod(0o555)
    if image.uid is not None:
        os.chown(folder, 0, 0)
    try:
        yield
    finally:
        os.chown(folder, found.st_uid, found.st_gid)
        folder.chmod(found.st_mode & 0o777)


def _generation(it: Running) -> int:
    generation: int = requests.get(f"{it.url}/readyz", timeout=10).json()["generation"]
    return generation


def test_a_pod_serves_from_the_secrets_alone_and_follows_when_the_operator_rotates(
    pod: Manifest, container: Manifest, image: Image, tmp_path: Path
) -> None:
    assert authsvc("keys", "init", cwd=tmp_path).returncode == 0
    with _mounts() as mounts, _read_only(image), database(POSTGRESQL) as store_url:
        in_secret = {"appsecret": SECRET, "store": store_url}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        keys = SecretMount(mounts / "keys")
        if image.uid is not None:
            os.chown(keys.path, 0, image.uid)  # the group of the pod: fsGroup
        keys.path.chmod(0o2750)  # and so has everything that comes into it
        keys.fill(tmp_path / "keys")
        (mounts / "appsecret").mkdir()
        for item in volumes["appsecret"]["secret"]["items"]:
            (mounts / "appsecret" / item["path"]).write_text(in_secret[item["key"]])
        settings = {}
        for variable in container["env"]:
            value = variable.get("value") or in_secret[variable["valueFrom"]["secretKeyRef"]["key"]]
            for mount in container["volumeMounts"]:
                if value == mount["mountPath"] or value.startswith(f"{mount['mountPath']}/"):
                    value = f"{mounts / mount['name']}{value.removeprefix(mount['mountPath'])}"
                    break
            settings[variable["name"].removeprefix("AUTHSVC_")] = value
        before = image.files()
        with image.serving(tmp_path / "log", arguments=container["args"], **settings) as it:
            said = requests.get(f"{it.url}/readyz", timeout=10).json()
            assert (said["status"], said["keys"], said["store"]) == ("ready", "ok", "ok")
            generation = _generation(it)
            assert authsvc("keys", "rotate-all", cwd=tmp_path).returncode == 0
            keys.fill(tmp_path / "keys")
            give_up_at = time.monotonic() + FOLLOW_WITHIN_S
            while _generation(it) == generation:
                assert time.monotonic() < give_up_at, it.output()
                time.sleep(0.1)
            assert it.stop() == 0
            assert "Traceback" not in it.output()
            assert "is no setting of authsvc" not in it.output()
        assert image.files() == before
        assert list(image.path(image.workdir).iterdir()) == []


def test_the_command_that_makes_the_secret_of_the_keys_has_all_of_them_and_nothing_else_in_it(
    printed: str, tmp_path: Path
) -> None:
    if shutil.which("kubectl") is None:
        # No package that the tests could install for themselves has it.
        pytest.skip("KUBECTL IS MISSING: the command that makes the Secret was not tried")
    assert authsvc("keys", "init", cwd=tmp_path).returncode == 0
    (tmp_path / "keys" / "README.md").write_text("not a key")
    found = re.search(r"^#   (\(cd keys && .*?\)) \| kubectl apply --server-side -f -$", printed, re.M | re.S)
    assert found is not None
    command = found[1].replace("\n#", "\n")
    environment = os.environ | {"KUBECONFIG": os.devnull}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    secret = yaml.safe_load(done.stdout)
    assert (secret["kind"], secret["metadata"]["name"]) == ("Secret", "authsvc-keys")
    files = [p for p in (tmp_path / "keys").iterdir() if not p.name.startswith(".") and p.name != "README.md"]
    assert {name: base64.b64decode(data) for name, data in secret["data"].items()} == {
        path.name: path.read_bytes() for path in files
    }
