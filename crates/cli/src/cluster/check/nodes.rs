//! Whether nodes are ready, whether kubelets know native sidecars, and whether the clocks of the nodes agree with the API server's.
//!
//! A kubelet renews its Lease every ten seconds and writes its own time into it, and the API server notes by its clock when it
//! took that: the two differ as the clocks do, however long ago it was. See
//! <https://kubernetes.io/docs/concepts/architecture/leases/#node-heart-beats>.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use super::before::{OLDEST, SKEW, time};
use super::finding::{Findings, Level};
use super::installed::some;
use crate::cluster::answer;
use crate::cluster::nodes::unready;

/// Where kubelets have their Leases.
const NAMESPACE: &str = "kube-node-lease";
/// So much behind, a node refuses certificates that were just issued: they begin that long in the past.
const USELESS: i64 = 600;
/// Seconds after which a Lease that is not renewed says nothing of now.
const SILENT: i64 = 60;

/// Names nodes that pods with native sidecars do not start on: kubelets may be older than the API server
/// (<https://kubernetes.io/releases/version-skew-policy/#kubelet>). `classic` is whether sidecars are ordinary containers there.
pub(super) async fn kubelets(client: &Client, classic: bool, findings: &mut Findings) {
    let api: Api<Node> = Api::all(client.clone());
    match answer("list the nodes", api.list(&ListParams::default())).await {
        Ok(nodes) => {
            away(&nodes.items, findings);
            if !classic {
                old(&nodes.items, findings);
            }
        }
        Err(error) => findings.unknown("kubelets", &error),
    }
}

/// Names nodes whose kubelets the API server does not hear, or that say themselves that they are not ready. Of many nodes one often
/// is, and what of the mesh is elsewhere works.
fn away(nodes: &[Node], findings: &mut Findings) {
    let away = nodes.iter().filter_map(|node| {
        let state = format!(
            "is not ready ({}): pods on it cannot be asked",
            unready(node)?
        );
        Some((format!("node {}", node.name_any()), state))
    });
    findings.few(
        Level::Warning,
        away,
        "see why: kubectl describe node NAME; have its kubelet run, or delete the node",
    );
}

fn old(nodes: &[Node], findings: &mut Findings) {
    let is_old = |node: &&Node| {
        let info = node.status.as_ref().and_then(|it| it.node_info.as_ref());
        info.and_then(|it| minor(&it.kubelet_version))
            .is_some_and(|it| it < OLDEST)
    };
    let names: Vec<_> = nodes
        .iter()
        .filter(is_old)
        .map(|it| it.name_any())
        .collect();
    if names.is_empty() {
        return;
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    findings.error(
        "kubelets",
        format!(
            "{} are older than 1.{OLDEST} and start no pod with a native sidecar: {}",
            names.len(),
            some(&names)
        ),
        "upgrade these nodes, or have ordinary sidecars: value proxy.nativeSidecar=false",
    );
}

/// Of `v1.33.1-eks-4096722`, 33.
fn minor(version: &str) -> Option<u32> {
    let (major, rest) = version.strip_prefix('v')?.split_once('.')?;
    let minor = rest.split_once('.').map_or(rest, |(minor, _)| minor);
    (major == "1").then(|| minor.parse().ok()).flatten()
}

pub(super) async fn clocks(client: &Client, findings: &mut Findings) {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let leases = answer("list the Leases of nodes", api.list(&ListParams::default())).await;
    let now = answer("ask the API server for the time", time(client)).await;
    match (leases, now) {
        (Ok(leases), Ok(now)) => judge(&leases.items, now, findings),
        (Err(error), _) | (_, Err(error)) => findings.unknown("clocks of nodes", &error),
    }
}

fn judge(leases: &[Lease], now: Option<u64>, findings: &mut Findings) {
    let (mut agree, mut silent) = (0, Vec::new());
    for lease in leases {
        let node = lease.name_any();
        let Some((theirs, heard)) = times(lease) else {
            silent.push(node);
            continue;
        };
        let now = now.and_then(|now| i64::try_from(now).ok());
        if now.is_some_and(|now| now - heard > SILENT) {
            silent.push(node);
            continue;
        }
        let ahead = theirs - heard;
        if ahead.unsigned_abs() <= SKEW {
            agree += 1;
            continue;
        }
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        let state = format!("is {} s {way} the API server's", ahead.abs());
        let remedy = format!(
            "have {node} follow NTP: its pods refuse certificates that are not valid by its clock"
        );
        if ahead <= -USELESS {
            findings.error(format!("clock of node {node}"), state, remedy);
        } else {
            findings.warning(format!("clock of node {node}"), state, remedy);
        }
    }
    if !silent.is_empty() {
        let names: Vec<_> = silent.iter().map(String::as_str).collect();
        findings.warning(
            "clocks of nodes",
            format!(
                "cannot be seen, because no Lease is renewed: {}",
                some(&names)
            ),
            "see whether the kubelet runs there; a virtual node has no clock of its own",
        );
    }
    if agree > 0 {
        findings.ok(
            "clocks of nodes",
            format!("{agree} agree with the API server's within {SKEW} s, by the Leases of their kubelets"),
        );
    }
}

/// When a Lease was renewed, by the node's clock and by the API server's, in seconds since 1970.
fn times(lease: &Lease) -> Option<(i64, i64)> {
    let renewed = lease.spec.as_ref()?.renew_time.as_ref()?;
    let written = lease.metadata.managed_fields.iter().flatten();
    let heard = written
        .filter_map(|it| it.time.as_ref())
        .map(|it| it.0.as_second());
    Some((renewed.0.as_second(), heard.max()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_whose_kubelets_know_no_native_sidecars_are_named() {
        let node = |version: &str| -> Node {
            let info = json!({
                "kubeletVersion": version, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
            });
            let metadata = json!({ "name": version });
            serde_json::from_value(json!({ "metadata": metadata, "status": { "nodeInfo": info } }))
                .expect("a node")
        };
        let named = |versions: &[&str]| {
            let nodes: Vec<_> = versions.iter().map(|it| node(it)).collect();
            let mut findings = Findings::default();
            old(&nodes, &mut findings);
            findings.all.pop().map(|it| it.state)
        };
        for well in ["v1.29.0", "v1.36.2+k3s1", "v1.30", "unknown", "v2.0.0"] {
            assert_eq!(named(&[well]), None, "{well}");
        }
        let state = named(&["v1.28.15-eks-1", "v1.31.0", "v1.27.1"]).expect("two are old");
        assert!(
            state.starts_with("2 are older") && state.ends_with(": v1.28.15-eks-1, v1.27.1"),
            "{state}"
        );
    }

    #[test]
    fn nodes_that_are_not_ready_are_named_with_their_reason_and_the_mesh_works_without_them() {
        let node = |status: &str| -> Node {
            let ready = json!({
                "type": "Ready", "status": status, "reason": "Why", "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            let node = json!({ "metadata": { "name": "n" }, "status": { "conditions": [ready] } });
            serde_json::from_value(node).expect("a node")
        };
        for (status, named) in [("True", false), ("False", true), ("Unknown", true)] {
            let mut findings = Findings::default();
            away(&[node("True"), node(status)], &mut findings);
            let found = findings.all.first();
            assert_eq!(found.is_some(), named, "{status}: {found:?}");
            if let Some(found) = found {
                assert_eq!((found.level, &*found.subject), (Level::Warning, "node n"));
                let begin = "is not ready (since 2026-01-01T00:00:00Z, Why)";
                assert!(found.state.starts_with(begin), "{found:?}");
            }
        }
        let mut findings = Findings::default();
        away(&vec![node("Unknown"); 100], &mut findings);
        let last = findings.all.last().map(|it| it.state.as_str());
        assert_eq!(last, Some("80 more have the like"));
    }

    #[test]
    fn a_clock_is_judged_by_both_times_of_its_lease() {
        const NOW: &str = "2026-01-01T00:10:05Z";
        let rows = [
            (
                "agrees",
                "2026-01-01T00:10:00.4Z",
                "2026-01-01T00:10:01Z",
                None,
            ),
            (
                "ahead",
                "2026-01-01T00:11:00Z",
                "2026-01-01T00:10:01Z",
                Some((Level::Warning, "is 59 s ahead of")),
            ),
            (
                "behind",
                "2026-01-01T00:09:00Z",
                "2026-01-01T00:10:01Z",
                Some((Level::Warning, "is 61 s behind")),
            ),
            (
                "far behind",
                "2025-12-31T23:00:00Z",
                "2026-01-01T00:10:01Z",
                Some((Level::Error, "is 4201 s behind")),
            ),
            (
                "ended",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:00:01Z",
                Some((Level::Warning, "cannot be seen")),
            ),
        ];
        for (name, theirs, heard, expected) in rows {
            let lease = json!({
                "metadata": { "name": "n", "managedFields": [{ "time": heard }] },
                "spec": { "renewTime": theirs },
            });
            let lease: Lease = serde_json::from_value(lease).expect("a Lease");
            let now: jiff::Timestamp = NOW.parse().expect("a time");
            let mut findings = Findings::default();
            judge(&[lease], u64::try_from(now.as_second()).ok(), &mut findings);
            let found = &findings.all[0];
            match expected {
                Some((level, words)) => {
                    assert_eq!(found.level, level, "{name}");
                    assert!(found.state.contains(words), "{name}: {}", found.state);
                    assert!(found.remedy.is_some(), "{name}");
                }
                None => assert_eq!(found.level, Level::Ok, "{name}"),
            }
        }
    }
}
