//! Whether every sidecar is connected, and takes in time what it is sent.
//!
//! One look says little: a sidecar may be on its way from one replica to another, and has not answered yet what it was sent just
//! now. Those that seem amiss are looked at again, until they are well or have been so for long.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};

use super::certificates;
use super::finding::Findings;
use super::some;
use super::workloads::Scope;
use crate::cluster::connected::{self, is_ready, log, missing, name};
use crate::cluster::control::{self, Answers};
use crate::cluster::status::{self, Proxy};
use crate::progress::Progress;

/// How long a sidecar may take to answer what it was sent.
const ANSWERS: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Who is asked for the proxies that it has.
pub(super) struct Asked<'a> {
    pub(super) scope: &'a Scope<'a>,
    pub(super) replicas: &'a [String],
    /// Those with a sidecar that nothing is known to keep from starting.
    pub(super) pods: Vec<Pod>,
    /// Whether all of them have answered.
    pub(super) all_answer: bool,
}

/// Judges the proxies that there are, and gives them as they are at the end.
pub(super) async fn look(
    asked: Asked<'_>,
    mut proxies: Vec<Proxy>,
    findings: &mut Findings,
) -> Vec<Proxy> {
    let Asked {
        scope,
        replicas,
        pods,
        mut all_answer,
    } = asked;
    let pods = connected::due(pods);
    let (mut absent, mut stale) = (missing(&pods, &proxies), stale(&proxies));
    let since = Instant::now();
    let mut sure = absent.is_empty();
    let mut progress = Progress::new();
    while !sure || (!stale.is_empty() && since.elapsed() < ANSWERS) {
        progress.says("looking again at sidecars that are behind");
        sleep(PAUSE).await;
        let Answers { heard, silent } = control::ask(scope.client, replicas, status::PATH).await;
        all_answer &= silent.is_empty();
        proxies = status::collect(heard);
        absent.retain(|pod| missing(std::slice::from_ref(*pod), &proxies).len() == 1);
        let still = self::stale(&proxies);
        stale.retain(|it| still.contains(it));
        sure = true;
    }
    let connected = proxies.len();
    absent_ones(&absent, connected, all_answer, findings);
    stale_ones(&stale, findings);
    progress.says("looking at certificates of sidecars");
    certificates::look(scope.client, &pods, &absent, findings).await;
    proxies
}

/// A pod, a type of resource that it has something to answer of, and what it has answered last.
type Unanswered = (String, String, Option<String>);

fn stale(proxies: &[Proxy]) -> BTreeSet<Unanswered> {
    let of = |proxy: &Proxy| {
        let pod = proxy.pod.clone();
        let unanswered = proxy
            .unanswered()
            .map(move |(kind, nonce)| (pod.clone(), kind.to_owned(), nonce.map(ToOwned::to_owned)));
        unanswered.collect::<Vec<_>>()
    };
    proxies.iter().flat_map(of).collect()
}

fn stale_ones(stale: &BTreeSet<Unanswered>, findings: &mut Findings) {
    let pods: BTreeSet<_> = stale.iter().map(|(pod, ..)| pod.as_str()).collect();
    let Some((namespace, pod)) = pods.first().and_then(|it| it.split_once('/')) else {
        return;
    };
    let names: Vec<_> = pods.iter().copied().collect();
    findings.warning(
        "sidecars",
        format!(
            "{} have not answered for {} s what they were sent, and go on with what they had: {}",
            names.len(),
            ANSWERS.as_secs(),
            some(&names)
        ),
        format!(
            "see whether they hang: kubectl -n {namespace} logs {pod} --all-containers; kubectl -n {namespace} top pod {pod} \
             --containers"
        ),
    );
}

fn absent_ones(absent: &[&Pod], connected: usize, all_answer: bool, findings: &mut Findings) {
    let (ready, not_ready): (Vec<_>, Vec<_>) =
        absent.iter().copied().partition(|pod| is_ready(pod));
    for (pods, ready) in [(not_ready, false), (ready, true)] {
        let Some(first) = pods.first() else {
            continue;
        };
        let names: Vec<_> = pods.iter().map(|pod| name(pod)).collect();
        let names = some(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let count = pods.len();
        let remedy = format!("see why: {}", log(first));
        if !all_answer {
            let state = format!("{count} are connected to no replica that answers: {names}");
            findings.unsure("sidecars", state, remedy);
        } else if ready {
            let state = format!(
                "{count} are not connected to the control plane, and go on with what they had until their certificates end: \
                 {names}"
            );
            // One or another may have trouble of its own; all have one in common.
            match connected {
                0 => findings.error("sidecars", state, remedy),
                _ => findings.warning("sidecars", state, remedy),
            }
        } else {
            let state =
                format!("{count} are not connected to the control plane, and not ready: {names}");
            findings.error("sidecars", state, remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    fn pod(name: &str, ready: bool) -> Pod {
        let condition = json!({ "type": "Ready", "status": if ready { "True" } else { "False" } });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop" },
            "status": { "phase": "Running", "conditions": [condition] },
        }))
        .expect("a pod")
    }

    #[test]
    fn sidecars_that_are_not_connected_are_found_unless_somebody_who_may_know_is_silent() {
        let (well, ill) = (pod("well", true), pod("ill", false));
        for (name, absent, connected, all_answer, expected) in [
            ("none", vec![], 1, true, &[][..]),
            ("none, one silent", vec![], 1, false, &[]),
            ("ready", vec![&well], 1, true, &[Level::Warning]),
            (
                "ready, and none is connected",
                vec![&well],
                0,
                true,
                &[Level::Error],
            ),
            ("not ready", vec![&ill], 1, true, &[Level::Error]),
            (
                "both",
                vec![&well, &ill],
                1,
                true,
                &[Level::Error, Level::Warning],
            ),
            ("one silent", vec![&well], 1, false, &[Level::Unknown]),
        ] {
            let mut findings = Findings::default();
            absent_ones(&absent, connected, all_answer, &mut findings);
            let levels: Vec<_> = findings.all.iter().map(|it| it.level).collect();
            assert_eq!(levels, expected, "{name}");
            for found in &findings.all {
                let remedy = found.remedy.as_deref().expect("a remedy");
                assert!(remedy.contains("kubectl -n shop logs "), "{remedy}");
            }
        }
    }

    #[test]
    fn a_sidecar_that_answers_nothing_is_stale_and_one_that_gets_on_is_not() {
        let proxy = |acked: &str, pending: usize| -> Proxy {
            let of = json!({
                "wildcard": true, "subscribed": 0, "pending": pending, "acked_nonce": acked, "acked_version": "3",
                "unacknowledged": 0, "rejected": [], "last_error": null,
            });
            serde_json::from_value(json!({
                "pod": "shop/web", "kind": "tulle", "identity": "", "address": "", "build": "", "connected_seconds": 7,
                "types": { "CDS": of },
            }))
            .expect("a proxy")
        };
        let first = stale(&[proxy("1", 1)]);
        assert_eq!(first, stale(&[proxy("1", 2)]));
        assert!(first.is_disjoint(&stale(&[proxy("2", 1)])));
        assert!(stale(&[proxy("1", 0)]).is_empty());
        let mut findings = Findings::default();
        stale_ones(&BTreeSet::new(), &mut findings);
        assert!(findings.all.is_empty());
        stale_ones(&first, &mut findings);
        assert_eq!(findings.worst(), Level::Warning);
        assert!(findings.all[0].state.contains(": shop/web"), "{findings:?}");
    }
}
