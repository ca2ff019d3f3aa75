//! `tulle install` and the Helm chart: two ways to the same objects.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::gate;

use crate::terminal::Terminal;

/// The chart, and its profiles.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts/tulle");

/// Values that touch every branch of the templates.
const EVERYTHING: &str = r#"
revision: next
image: { registry: registry.example/mesh, tag: "1.10", pullPolicy: Always, pullSecrets: [one, two] }
trustDomain: mesh.example
clusterDomain: k8s.example
control:
  replicas: 7
  log: info,tulle_control=debug
  leafTtl: 1h
  rootPropagation: 5m
  caIssuerSecret: issuer
  extraArgs: ["--xds-address=[::]:15012"]
  resources: { limits: { cpu: "2", memory: 1Pi }, requests: { cpu: 100u, memory: "1e9" } }
  antiAffinity: required
  autoscaling: { enabled: true, minReplicas: 2, maxReplicas: 9, cpuPercent: 50 }
  priorityClassName: system-cluster-critical
  nodeSelector: { kubernetes.io/os: linux }
  tolerations: [{ key: dedicated, operator: Equal, value: mesh, effect: NoSchedule }, { key: sla, operator: Gt, value: "950" }]
injector:
  failurePolicy: Ignore
  timeoutSeconds: 3
  disruptionBudget: false
  alwaysInject:
  - { matchLabels: { app: build, tier: "1" }, matchExpressions: [{ key: a.b/c, operator: NotIn, values: [d, e] }] }
  - { matchExpressions: [{ key: f, operator: Exists }] }
  neverInject: [{ matchLabels: { app: batch } }]
  extraArgs: [--max-connections=9, '--never-inject={"matchLabels": {"with": "colon"}}']
proxy: { log: warn, accessLog: "off", nativeSidecar: false, mergeMetrics: false, imagePullSecrets: [mine, theirs], cpuRequest: 1m, cpuLimit: "1", memoryRequest: 17Mi, memoryLimit: 99Mi }
networkPolicy: { enabled: false }
"#;

pub(crate) fn helm_renders_what_tulle_installs(terminal: &Terminal) -> anyhow::Result<()> {
    let folder = terminal.manifests(EVERYTHING)?;
    let everything = format!("{folder}/all.yaml");
    let (ha, dev) = (
        format!("{CHART}/values-ha.yaml"),
        format!("{CHART}/values-dev.yaml"),
    );
    let set = ["--set", "control.log=debug", "--set", "image.tag=1.20"];
    let ways: [(&[&str], &[&str]); 5] = [
        (&[], &[]),
        (&["--profile", "ha"], &["--values", &ha]),
        (&["--profile", "dev"], &["--values", &dev]),
        (&["--values", &everything], &["--values", &everything]),
        (&set, &set),
    ];
    for (ours, theirs) in ways {
        let ours = [&["install", "--output", "json"], ours].concat();
        let ran = terminal.tulle(&ours, "")?;
        ensure!(ran.stderr.contains("tulle check --pre"), "{ran}");
        let installed = documents(&ran.ok()?)?;
        let template = ["template", "tulle", CHART, "--namespace", "tulle-system"];
        let rendered = helm(terminal, &[&template, theirs].concat())?.ok()?;
        let mut installed = by_name(installed)?;
        installed.retain(|(kind, _), _| kind != "Namespace" && kind != "CustomResourceDefinition");
        let rendered = by_name(documents(&rendered)?)?;
        let names =
            |objects: &BTreeMap<_, _>| objects.keys().cloned().collect::<Vec<(String, String)>>();
        ensure!(
            names(&installed) == names(&rendered),
            "{ours:?}: {:?} is not {:?}",
            names(&installed),
            names(&rendered)
        );
        ensure!(installed.len() > 10, "{:?}", names(&installed));
        for (name, object) in &installed {
            let other = &rendered[name];
            ensure!(
                object == other,
                "{ours:?}: {name:?}:\n{object:#}\nis not\n{other:#}"
            );
        }
    }
    Ok(())
}

pub(crate) fn values_that_helm_refuses_are_refused(terminal: &Terminal) -> anyhow::Result<()> {
    helm(
        terminal,
        &["lint", "--strict", CHART, "--namespace", "tulle-system"],
    )?
    .ok()?;
    for (assignment, ours, theirs) in [
        (
            "control.replicas=0",
            "control has no replicas",
            "control/replicas",
        ),
        ("control.replicsa=3", "unknown field `replicsa`", "replicsa"),
        ("revision=Next", "is no name", "revision"),
        (
            "injector.failurePolicy=No",
            "unknown variant `No`",
            "failurePolicy",
        ),
        ("proxy.nativeSidecar=maybe", "invalid type", "nativeSidecar"),
        (
            "injector.alwaysInject[0].matchLabel.app=x",
            "unknown field",
            "alwaysInject",
        ),
        ("control.leafTtl=abc", "would not start", "leafTtl"),
        ("proxy.cpuRequest=zz", "would not start", "cpuRequest"),
        ("clusterDomain=a_b", "would not start", "clusterDomain"),
        (
            "control.resources.limits.cpu=-1",
            "is no quantity",
            "limits/cpu",
        ),
        ("image.tag=a=b", "is no tag", "image/tag"),
        ("image.registry=a=b", "image.registry", "image/registry"),
        (
            "control.caIssuerSecret=null",
            "missing field `caIssuerSecret`",
            "caIssuerSecret",
        ),
        (
            "control.autoscaling.maxReplicas=1",
            "is more than maxReplicas 1",
            "more than maxReplicas",
        ),
    ] {
        let refused = terminal.tulle(&["install", "--set", assignment], "")?;
        ensure!(
            refused.status == 1 && refused.stdout.is_empty(),
            "{refused}"
        );
        ensure!(
            refused.stderr.contains(ours) && refused.stderr.contains(assignment),
            "{refused}"
        );
        let refused = helm(terminal, &["template", "tulle", CHART, "--set", assignment])?;
        ensure!(
            refused.status != 0 && refused.stderr.contains(theirs),
            "{refused}"
        );
    }
    Ok(())
}

fn helm(terminal: &Terminal, arguments: &[&str]) -> anyhow::Result<tulle_tests::Ran> {
    terminal.program_at(&gate::built("helm").display().to_string(), arguments)
}

/// The objects of a text, of JSON or YAML.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    if text.starts_with('{') {
        return Ok(text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?);
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|it| !it.is_null()).collect())
}

fn by_name(objects: Vec<Value>) -> anyhow::Result<BTreeMap<(String, String), Value>> {
    let mut named = BTreeMap::new();
    for object in objects {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let kind = text(&object["kind"]).context("an object has a kind")?;
        let name = text(&object["metadata"]["name"]).context("an object has a name")?;
        let twice = named.insert((kind, name), object);
        ensure!(twice.is_none(), "twice: {twice:?}");
    }
    Ok(named)
}
