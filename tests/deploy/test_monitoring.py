"""The monitoring of deploy/monitoring: Prometheus' own checks, and a running service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bento.contract.routes import ROUTES
from tests.support.bento.asking import PNG
from tests.support.deploy.compose import environment, mounted
from tests.support.deploy.prometheus import (
    ALERTS,
    CONFIG,
    MONITORING,
    Prometheus,
    prometheus,
    promtool,
)
from tests.support.paths import ROOT
from tests.support.serving import Server, serving

pytestmark = pytest.mark.service

KEY = "a-key-of-the-service"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
UNIT_TESTS = ALERTS.with_name("alerts_test.yml")
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/vision-encoder.json").read_text())
PANELS = {panel["title"]: panel["targets"] for panel in DASHBOARD["panels"]}
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for targets in PANELS.values() for target in targets
]

# Part of etc/default-counters.csv in NVIDIA/dcgm-exporter, which its image exposes by default.
DCGM = {
    *("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"),
    *("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP"),
}
WORDS = {
    *("sum", "count", "by", "and", "on"),
    *("rate", "increase", "histogram_quantile", "min_over_time"),
}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a service with a key."""
    with serving(tmp_path_factory.mktemp("locked"), API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def scraped(locked: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrape a service that answers some requests, one of them with an error."""
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(folder, locked.url, KEY) as running, locked.client() as http:
        http.headers["X-API-Key"] = KEY
        rate = 'rate(vision_encoder_requests_total{route="/search"}[1m]) > 0'

        def ask() -> bool:
            assert http.post("/images", json={"id": "1", "image_base64": PNG}).status_code == 200
            assert http.post("/search", json={"text": "a"}).status_code == 200
            assert http.get("/nowhere").status_code == 404
            return bool(running.query(rate))

        running.wait_for(ask)
        yield running


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression."""
    rest = re.sub(r'"[^"]*"', "", expression)
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on) \([^)]*\)", " ", rest)
    return set(re.findall(r"\b[A-Za-z_]\w*", re.sub(r"\b\d\S*", "", rest))) - WORDS


def test_prometheus_accepts_the_configuration_and_the_rules() -> None:
    for arguments in (("check", "config", "--syntax-only", CONFIG), ("check", "rules", ALERTS)):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_pass_their_unit_tests() -> None:
    done = promtool("test", "rules", UNIT_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    fired = {
        each["alertname"]
        for test in tests
        for each in test.get("alert_rule_test", ())
        if each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_with_the_key_prometheus_scrapes_the_service(scraped: Prometheus) -> None:
    (value,) = scraped.query('up{job="vision-encoder"}')
    assert value["value"][1] == "1"
    (info,) = scraped.query("vision_encoder_model_info")
    assert info["metric"]["device"] == "cpu"
    (points,) = scraped.query("vision_encoder_store_free_bytes")
    assert float(points["value"][1]) > 1e6
    firing = {alert["labels"]["alertname"] for alert in scraped.get("alerts")["alerts"]}
    assert "VisionEncoderDown" not in firing


def test_without_the_key_the_scrape_fails_and_an_alert_says_so(
    locked: Server, tmp_path: Path
) -> None:
    with prometheus(tmp_path, locked.url, "") as running:
        running.wait_for(lambda: bool(running.query('up{job="vision-encoder"} == 0')))
        (target,) = running.get("targets", state="active")["activeTargets"]
        assert "401" in target["lastError"]
        assert running.query("vision_encoder_model_info") == []
        running.wait_for(lambda: bool(running.get("alerts")["alerts"]))
        (alert,) = running.get("alerts")["alerts"]
        assert (alert["labels"]["alertname"], alert["state"]) == ("VisionEncoderDown", "pending")
        assert "rejects the key" in alert["annotations"]["summary"]


def test_every_metric_of_the_alerts_and_the_dashboard_exists(scraped: Prometheus) -> None:
    named = set().union(*map(metrics_of, EXPRESSIONS))
    assert len(named) > 20
    assert {name for name in named if name.startswith("DCGM")} <= DCGM
    served = set(scraped.get("label/__name__/values"))
    assert named - DCGM - {"ALERTS"} - served == set()


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_shows_the_running_service(title: str, scraped: Prometheus) -> None:
    for target in PANELS[title]:
        filled = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
        assert "$" not in filled
        found = scraped.query(filled)
        if not metrics_of(filled) <= DCGM | {"ALERTS"}:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert any(labels <= series["metric"].keys() for series in found), filled


def test_the_unit_tests_use_the_labels_of_the_running_service(scraped: Prometheus) -> None:
    labels: dict[str, set[str]] = {}
    for series in scraped.get("series", **{"match[]": '{job="vision-encoder"}'}):
        labels.setdefault(series["__name__"], set()).update(series)
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    for given in (each["series"] for test in tests for each in test["input_series"]):
        name, inside = given.rstrip("}").split("{")
        if name not in DCGM:
            assert set(re.findall(r'(\w+)="', inside)) <= labels[name], given


def test_the_slow_alert_is_about_routes_that_exist() -> None:
    (expression,) = (rule["expr"] for rule in RULES if rule["alert"] == "VisionEncoderSlow")
    (routes,) = re.findall(r'route=~"([^"]+)"', expression)
    assert set(routes.split("|")) <= {route.path for route in ROUTES}


def test_the_operations_page_explains_every_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"(?m)^### (VisionEncoder\w+)$", page) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{anchor}"


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    def read(name: str) -> Any:
        return yaml.safe_load((MONITORING / "grafana" / name).read_text())

    (source,) = read("datasources/prometheus.yml")["datasources"]
    used = [panel["datasource"] for panel in DASHBOARD["panels"]]
    assert all(each == {"type": source["type"], "uid": source["uid"]} for each in used)
    inside = mounted("grafana")
    assert inside == [f"/etc/grafana/provisioning/{kind}" for kind in ("datasources", "dashboards")]
    (provider,) = read("dashboards/dashboards.yml")["providers"]
    assert provider["options"]["path"] == inside[1]
    home = environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{inside[1]}/vision-encoder.json"
    assert httpx.URL(source["url"]).host == "prometheus"
