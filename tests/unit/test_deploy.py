"""A deployment's files: complete, consistent with each other, refused where the inputs make none."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from inferoptim.cli.main import main
from inferoptim.deploy.compose import ServerInputs, compose_yaml
from inferoptim.deploy.write import DeployInputs, check_syntax, deployment_files, monitoring_files
from inferoptim.errors import ConfigError

ROOT = Path(__file__).parents[2]


def _needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed here")


def test_the_committed_compose_file_and_provisioning_are_the_generated_ones():
    assert (ROOT / "docker" / "compose.yaml").read_text() == compose_yaml(
        ServerInputs(),
        build_context="..",
        dockerfile="docker/Dockerfile",
        monitoring="../deploy/monitoring",
        grafana="../deploy/monitoring/grafana",
    )
    for path, text in monitoring_files(DeployInputs().rules).items():
        assert (ROOT / "deploy" / "monitoring" / path).read_text() == text, path


def test_every_file_that_compose_mounts_is_written(tmp_path):
    files = deployment_files(DeployInputs())
    services = yaml.safe_load(files["compose.yaml"])["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert any(path == source[2:] or path.startswith(source[2:] + "/") for path in files), source
    assert "build" not in services["inferoptim"]


def test_the_server_gets_what_was_stated_in_every_form():
    server = ServerInputs(
        "org/model", "reg.io/i:1", 2.5, max_queue=7, drain_s=20, engine=("max_num_seqs=4",), gpus=2
    )
    files = deployment_files(DeployInputs(server=server, min_replicas=2, max_replicas=3))
    compose = yaml.safe_load(files["compose.yaml"])["services"]["inferoptim"]
    pod = yaml.safe_load(files["kserve/inference-service.yaml"])["spec"]["predictor"]
    for arguments in (compose["command"], pod["containers"][0]["args"]):
        text = " ".join(arguments)
        for words in (
            "serve org/model",
            "--usd-per-hour 2.5",
            "--max-queue 7",
            "--drain-timeout 20",
            "-e max_num_seqs=4",
        ):
            assert words in text
    assert compose["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["terminationGracePeriodSeconds"] > 20  # a pod is not killed while it drains
    assert int(compose["stop_grace_period"].removesuffix("s")) > 20
    scaler = yaml.safe_load(files["kserve/keda.yaml"])["spec"]
    assert (scaler["minReplicaCount"], scaler["maxReplicaCount"]) == (2, 3)
    tree = ast.parse(files["ray_app.py"])
    (names,) = [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "ARGUMENTS"]
    assert ast.literal_eval(names.value)[:2] == ["serve", "org/model"]


def test_the_arguments_are_options_that_serve_has():
    """A renamed option of `serve` must break a test, not a deployment."""
    import inspect

    from inferoptim.cli.serve import serve

    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    server = ServerInputs(usd_per_hour=1.0, engine=("max_num_seqs=4",))
    asked = {a for a in server.arguments(1) if a.startswith("--")}
    assert asked <= known


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ServerInputs(model='x"; rm -rf /'), "model"),
        (lambda: ServerInputs(image="Not An Image"), "image"),
        (lambda: ServerInputs(engine=("a b",)), "field=value"),
        (lambda: ServerInputs(usd_per_hour=-1), "price"),
        (lambda: deployment_files(DeployInputs(name="Bad_Name")), "name"),
        (lambda: deployment_files(DeployInputs(min_replicas=3, max_replicas=2)), "replicas"),
        (lambda: deployment_files(DeployInputs(memory="lots")), "quantities"),
    ],
)
def test_inputs_that_make_no_deployment_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_the_command_writes_checks_and_does_not_overwrite(tmp_path, capsys):
    out = tmp_path / "d"
    assert main(["deploy", "--out", str(out), "--part", "kserve", "--part", "ray", "--json"]) == 0
    assert {p.name for p in out.rglob("*") if p.is_file()} == {
        "inference-service.yaml",
        "keda.yaml",
        "ray_app.py",
    }
    assert main(["deploy", "--out", str(out), "--part", "ray"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["deploy", "--out", str(out), "--part", "ray", "--force"]) == 0
    assert main(["deploy", "--out", str(tmp_path / "e"), "--slo-ttft", "2.2"]) == 2
    assert "bucket" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_everything_parses_with_every_option():
    server = ServerInputs("a/b", "i", 1.0, engine=("x=1",), gpus=1)
    check_syntax(deployment_files(DeployInputs(server=server)))


@_needs("docker-compose")
def test_compose_accepts_the_committed_file():
    done = subprocess.run(
        ["docker-compose", "-f", "docker/compose.yaml", "config", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "GRAFANA_ADMIN_PASSWORD": "x"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without = subprocess.run(
        ["docker-compose", "-f", "docker/compose.yaml", "config", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert without.returncode != 0
    assert "set a password for Grafana" in without.stderr


@_needs("hadolint")
def test_hadolint_accepts_the_dockerfile():
    done = subprocess.run(
        ["hadolint", "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
