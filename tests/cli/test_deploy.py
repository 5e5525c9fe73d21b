"""What is shipped for deploying, as far as it can be checked without an engine or a cluster:
manifests against Kubernetes' schemas, their memory against `gptd plan`, dashboards and alerts
against /metrics, the bill of materials against what is linked, docs/deploy.md against what there
is."""

import json
import re
import shlex
import subprocess

import kubernetes_validate
import pytest
import yaml

import gptd
from gptd import ROOT

SCRIPTS = ROOT / "scripts"
MANIFESTS = [document for path in sorted((SCRIPTS / "kubernetes").glob("*.yaml"))
             for document in yaml.safe_load_all(path.read_text())]
MIB = 1 << 20


def manifest(kind):
    found = [m for m in MANIFESTS if m["kind"] == kind]
    assert len(found) == 1
    return found[0]


def pod(kind):
    return manifest(kind)["spec"]["template"]["spec"]


def options_of(subcommand):
    help_text = gptd.run(subcommand, "--help").stdout
    return {n.removeprefix("no-") for n in re.findall(r"^  --([a-z0-9-]+)", help_text, re.M)}


# ---- Kubernetes ----

@pytest.mark.parametrize("document", MANIFESTS, ids=lambda m: m["kind"])
def test_manifests_follow_kubernetes_schemas(document):
    if document["apiVersion"].startswith("monitoring.coreos.com/"):  # not Kubernetes' own
        endpoint = document["spec"]["podMetricsEndpoints"][0]
        assert endpoint["path"] == "/metrics" and endpoint["port"] == "http"
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_manifest_is_found():
    wrong = {**manifest("Service"), "spec": {"ports": [{"name": "http"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_names_fit_together():
    labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodMonitor")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    for kind in ("Deployment", "Job"):
        assert {v["persistentVolumeClaim"]["claimName"] for v in pod(kind)["volumes"]
                if "persistentVolumeClaim" in v} == claims


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_pods_may_do_nothing_else(kind):
    spec = pod(kind)
    container, = spec["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"]
    # A service called gptd would set GPTD_PORT=tcp://...
    assert spec["enableServiceLinks"] is False


def planned_mib(purpose, *arguments):
    ended = gptd.run("plan", "--purpose", purpose, "--json", *arguments)
    plan = json.loads(ended.stdout)
    return -(-(plan[purpose]["total_bytes"] + plan["device_overhead_bytes"]) // MIB)


def requests(kind):
    return pod(kind)["containers"][0]["resources"]["requests"]


def test_requested_memory_is_what_is_planned():
    env = {e["name"]: e["value"] for e in pod("Deployment")["containers"][0]["env"]}
    threads = env["GPTD_THREADS"]
    serving = planned_mib("generation", "--model", gptd.MODEL, "--threads", threads,
                          "--max-seqs", env["GPTD_MAX_SEQS"],
                          "--max-batch-tokens", env["GPTD_MAX_BATCH_TOKENS"])
    assert requests("Deployment") == {"cpu": threads, "memory": f"{serving}Mi"}
    threads, = (a.removeprefix("--threads=") for a in pod("Job")["containers"][0]["args"]
                if a.startswith("--threads="))
    training = planned_mib("training", "--config", ROOT / "configs/tiny_char.json",
                           "--threads", threads)
    assert requests("Job") == {"cpu": threads, "memory": f"{training}Mi"}


def test_variables_and_options_exist():
    def variables(environment):
        return {name.removeprefix("GPTD_").lower().replace("_", "-") for name in environment}
    env = [e["name"] for e in pod("Deployment")["containers"][0]["env"]]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    dockerfile = re.sub("#.*", "", (ROOT / "Dockerfile").read_text())
    dockerfile = [name for name in re.findall(r"\b(GPTD_[A-Z_]+)=", dockerfile)
                  if name != "GPTD_VERSION"]
    assert len(dockerfile) >= 4
    for names in (env, compose["gptd"]["environment"], dockerfile):
        assert variables(names) <= options_of("serve")
    arguments = pod("Job")["containers"][0]["args"]
    assert arguments[0] == "train"
    assert {re.match("--([a-z-]+)", a).group(1) for a in arguments[1:]} <= options_of("train")


# ---- Compose ----

@pytest.mark.parametrize("service", ["gptd", "gptd-gpu"])
def test_compose_services_are_hardened(service):
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    s = compose["services"][service]
    assert s["read_only"] and s["cap_drop"] == ["ALL"] and s["mem_limit"]
    assert s["security_opt"] == ["no-new-privileges:true"]
    assert s["healthcheck"]["test"] == ["CMD", "gptd", "probe"]
    assert set(s["secrets"]) == set(compose["secrets"])
    assert s["build"]["target"] in re.findall(r"AS (\w+)", (ROOT / "Dockerfile").read_text())
    assert ("profiles" in s) == (service == "gptd-gpu")


# ---- what to watch ----

@pytest.fixture(scope="module")
def families(server):
    with server.client() as http:
        gptd.complete(http, prompt="A", max_tokens=2)
        text = http.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    series = {name + suffix for name, kind in kinds.items()
              for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return series


def dashboard():
    return json.loads((SCRIPTS / "grafana/gptd.json").read_text())


def rules():
    group, = yaml.safe_load((SCRIPTS / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def metrics_in(expression):
    return set(re.findall(r"\b(?:gptd|process)_[a-z0-9_]+", re.sub(r'"[^"]*"', '""', expression)))


def test_the_dashboards_metrics_exist(families):
    expressions = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    used = set().union(*map(metrics_in, expressions))
    assert len(expressions) > 20 and len(used) > 15
    assert used <= families, used - families
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_the_alerts_metrics_exist(families):
    used = set().union(*(metrics_in(rule["expr"]) for rule in rules()))
    assert len(used) >= 8
    assert used <= families, used - families
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_the_alerts_reasons_exist(server):
    with server.client() as http:
        text = http.get("/metrics").text
    for rule in rules():
        for reasons in re.findall(r'reason=~"([^"]+)"', rule["expr"]):
            for reason in reasons.split("|"):
                assert f'reason="{reason}"' in text


# ---- the bill of materials ----

def test_the_bill_of_materials():
    ended = subprocess.run([SCRIPTS / "sbom.sh", gptd.BINARY, "1.2.3", "other-library=4.5"],
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    bill = json.loads(ended.stdout)
    assert bill["spdxVersion"] == "SPDX-2.3" and bill["SPDXID"] == "SPDXRef-DOCUMENT"
    for field in ("dataLicense", "name", "documentNamespace", "creationInfo"):
        assert bill[field]
    ids = [p["SPDXID"] for p in bill["packages"]]
    assert len(ids) == len(set(ids))
    for package in bill["packages"]:
        assert re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", package["SPDXID"])
        assert package["versionInfo"] and package["downloadLocation"] == "NOASSERTION"
    for relationship in bill["relationships"]:
        assert {relationship["spdxElementId"], relationship["relatedSpdxElement"]} <= \
            {*ids, "SPDXRef-DOCUMENT"}
    versions = {p["name"]: p["versionInfo"] for p in bill["packages"]}
    assert versions["gptd"] == "1.2.3" and versions["other-library"] == "4.5"
    linked = subprocess.run(["ldd", gptd.BINARY], capture_output=True, text=True).stdout
    for library in ("microhttpd", "gnutls", "cjson", "pcre2-8", "unistring"):
        assert f"lib{library}.so" in linked
        assert any(name.startswith(f"lib{library}") for name in versions), library


def test_a_program_that_is_not_there_has_no_bill():
    ended = subprocess.run([SCRIPTS / "sbom.sh", "/no/such/program", "1"], capture_output=True,
                           text=True)
    assert ended.returncode != 0


# ---- the image's sources ----

def test_the_build_context_has_what_the_dockerfile_copies():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()
               if line.startswith("!")]
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.M)
              for word in line.split()[:-1]]
    assert {"Makefile", "server", "configs"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists() and path in allowed, path


# ---- docs/deploy.md ----

def test_what_the_guide_names_is_there():
    text = (ROOT / "docs/deploy.md").read_text()
    for path in re.findall(r"\b(?:scripts|configs|models/shakespeare)[\w/.]*\w/?", text):
        assert (ROOT / path).exists(), path
    known = set().union(*(options_of(s) for s in ("serve", "plan", "probe", "key", "generate")))
    others = {"always", "build-arg", "from-file", "now", "profile", "read-only", "rm", "target"}
    named = {n.removeprefix("no-") for n in re.findall(r"(?<![\w-])--([a-z][a-z-]+[a-z])", text)}
    assert len(named) > 20 and named - others <= known | {"options"}, named - others - known
    variables = set(re.findall(r"\bGPTD_([A-Z_]+)", text)) - {"MEMORY"}  # compose.yaml's own
    variables = {v.lower().replace("_", "-").removeprefix("no-") for v in variables}
    assert variables <= known, variables - known


def test_the_guides_plans_can_be_made():
    text = (ROOT / "docs/deploy.md").read_text()
    commands = re.findall(r"^    gptd (plan .*)$", text, re.M)
    assert len(commands) == 3
    for command in commands:
        ended = gptd.run(*shlex.split(command))
        assert ended.returncode == 0, (command, ended.stderr)
