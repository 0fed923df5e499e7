"""Claims of docs/operations.md: metrics, log fields, the commands of a backup, a scrape job."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import yaml

from rag.settings import RagSettings
from rag.store.edge.store import EdgeStore
from tests.support.deploy.prometheus import promtool
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, make_points
from tests.support.serving import Server, logged

pytestmark = pytest.mark.service

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_named_metric_is_served(server: Server) -> None:
    httpx.post(f"{server.url}/embed/text", json={"text": "a"})
    served = httpx.get(f"{server.url}/metrics").text
    metrics = set(re.findall(r"`(vision_encoder_\w+)`", PAGE))
    assert metrics
    for metric in metrics:
        assert f"# TYPE {metric} " in served, metric


def test_the_log_has_no_field_that_the_page_omits(server: Server) -> None:
    (section,) = re.findall(r"## Read the log\n(.*?)\n## ", PAGE, re.S)
    documented = set(re.findall(r"`(\w+)`", section))
    httpx.get(f"{server.url}/info", headers={"X-Request-ID": "of-this-test"})
    request = logged(server, request_id="of-this-test")
    (start,) = (
        json.loads(line) for line in server.log.read_text().splitlines() if '"dimension"' in line
    )
    for line in (request, start):
        assert line.keys() - {"taskName"} <= documented


def test_the_commands_of_the_page_back_up_and_restore_an_embedded_store(tmp_path: Path) -> None:
    (section,) = re.findall(r"## Back up and restore\n(.*?)\n## ", PAGE, re.S)
    backup, restore, *_ = re.findall(r"```console\n(.*?)```", section, re.S)
    store_path = tmp_path / RagSettings.model_fields["qdrant_path"].default

    def run(commands: str) -> None:
        script = commands.replace("$ ", "")
        subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True)

    with closing(EdgeStore(store_path)) as store:
        store.open("a", CLIP).upsert(make_points(20))
    run(backup)
    with closing(EdgeStore(store_path)) as store:
        held = store.open("a", CLIP)
        held.delete([point.id for point in make_points(20)])
        store.open("b", CLIP)
    run(restore)
    with closing(EdgeStore(store_path)) as store:
        published = store.published("a")
        assert published is not None
        assert published.count() == 20
        assert store.published("b") is None
    assert [path.name for path in (store_path / "a").iterdir() if path.is_symlink()] == [
        "published"
    ]


def test_prometheus_accepts_the_job_for_kubernetes(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (job,) = yaml.safe_load(text)
    # Debian's build of Prometheus knows no Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [
        {"role": "pod", "namespaces": {"names": ["vision-encoder"]}}
    ]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [job]}))
    done = promtool("check", "config", "--syntax-only", config)
    assert done.returncode == 0, done.stdout + done.stderr
    (encoder,) = (
        each
        for each in yaml.safe_load_all((ROOT / "deploy/kubernetes/base/encoder.yaml").read_text())
        if each["kind"] == "Deployment"
    )
    (rule,) = job["relabel_configs"]
    labels = encoder["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == rule["regex"]
