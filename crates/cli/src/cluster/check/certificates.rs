//! Whether certificates of sidecars are renewed in time. The control plane does not keep whom it has given which, so that sidecars
//! themselves are asked: a few of them, beginning with those that are most likely to have none to come.

use std::collections::BTreeSet;

use futures_util::future;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};
use serde::Deserialize;
use tulle_runtime::names::ports;

use super::finding::Findings;
use super::some;
use crate::cluster::connected::{log, name, sidecar_runs, since};
use crate::cluster::error::ClusterError;
use crate::cluster::reach::Reach;

const SUBJECT: &str = "certificates of sidecars";
/// How many are asked, all at once.
const ASKED: usize = 20;
/// Seconds that the CA dates certificates back, which are none of their life.
const BACKDATE: i64 = 600;

/// What a sidecar tells of its own.
#[derive(Debug, Deserialize)]
struct Certificate {
    not_before: Timestamp,
    not_after: Timestamp,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Lasts,
    /// It is renewed at half of its life, so that one with less than a quarter left was not.
    Ends,
    Ended,
}

impl Certificate {
    fn at(&self, now: i64) -> State {
        let (from, to) = (self.not_before.as_second(), self.not_after.as_second());
        match to - now {
            ..=0 => State::Ended,
            left if left < (to - from - BACKDATE) / 4 => State::Ends,
            _ => State::Lasts,
        }
    }
}

/// Asks some of the pods that should be connected, of which these are not.
pub(super) async fn look(client: &Client, pods: &[Pod], absent: &[&Pod], findings: &mut Findings) {
    let absent: BTreeSet<_> = absent.iter().map(|pod| name(pod)).collect();
    let (chosen, all) = choose(pods, &absent);
    let asked = chosen.into_iter().map(|pod| async move {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let reach = Reach {
            client,
            namespace: &namespace,
            pod: &name,
            port: ports::ADMIN,
        };
        (pod, reach.get::<Certificate>("/certs").await)
    });
    let told = future::join_all(asked).await;
    judge(&told, all, &absent, Timestamp::now().as_second(), findings);
}

/// Those to be asked, and how many there are: first whoever is not connected, then whoever runs longest.
fn choose<'a>(pods: &'a [Pod], absent: &BTreeSet<String>) -> (Vec<&'a Pod>, usize) {
    let mut all: Vec<_> = pods.iter().filter(|pod| sidecar_runs(pod)).collect();
    all.sort_by_cached_key(|pod| (!absent.contains(&name(pod)), since(pod)));
    let count = all.len();
    all.truncate(ASKED);
    (all, count)
}

fn judge(
    told: &[(&Pod, Result<Certificate, ClusterError>)],
    all: usize,
    absent: &BTreeSet<String>,
    now: i64,
    findings: &mut Findings,
) {
    let (mut ended, mut ends, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = 0_usize;
    for (pod, told) in told {
        match told.as_ref().map(|it| it.at(now)) {
            Ok(State::Ended) => ended.push(*pod),
            Ok(State::Ends) => ends.push(*pod),
            Ok(State::Lasts) => last += 1,
            // Who may not ask one may ask none.
            Err(error @ ClusterError::Forbidden { .. }) => return findings.unknown(SUBJECT, error),
            // That it is not connected is a finding already.
            Err(_) if absent.contains(&name(pod)) => {}
            Err(_) => silent.push(*pod),
        }
    }
    if let Some((state, remedy)) = said(&ended, "have ended: nobody reaches their pods by mTLS") {
        findings.error(SUBJECT, state, remedy);
    }
    if let Some((state, remedy)) = said(&ends, "end soon, and should have been renewed by now") {
        findings.warning(SUBJECT, state, remedy);
    }
    if let Some((state, remedy)) = said(&silent, "are not known: their sidecars do not say") {
        findings.unsure(SUBJECT, state, remedy);
    }
    if last > 0 {
        let others = match told.len() < all {
            true => "; of any other: tulle proxy certs NAMESPACE/POD",
            false => "",
        };
        findings.ok(
            SUBJECT,
            format!(
                "{last} are renewed in time; {} of {all} were asked{others}",
                told.len()
            ),
        );
    }
}

/// How many are so, which, and what to do about the first.
fn said(pods: &[&Pod], so: &str) -> Option<(String, String)> {
    let first = pods.first()?;
    let names: Vec<_> = pods.iter().map(|pod| name(pod)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let state = format!("{} {so}: {}", pods.len(), some(&names));
    Some((state, format!("see why: {}", log(first))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    /// 12:00 of a day.
    const NOON: i64 = 1_767_268_800;

    fn pod(name: &str, since: &str) -> Pod {
        let running = json!({ "running": { "startedAt": format!("2026-01-01T{since}Z") } });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop" },
            "status": { "phase": "Running", "initContainerStatuses": [{
                "name": "tulle-proxy", "image": "x", "imageID": "", "restartCount": 0, "ready": true, "state": running,
            }] },
        }))
        .expect("a pod")
    }

    /// As a sidecar says it, of one from such an hour to such a one.
    fn certificate(from: &str, to: &str) -> Certificate {
        serde_json::from_value(json!({
            "id": "spiffe://x/ns/shop/sa/web", "valid": true, "roots": [],
            "not_before": format!("2026-01-01T{from}:00Z"), "not_after": format!("2026-01-01T{to}:00Z"),
        }))
        .expect("a certificate")
    }

    #[test]
    fn a_certificate_that_was_not_renewed_is_told_from_one_that_will_be() {
        for (from, to, expected) in [
            ("11:00", "15:00", State::Lasts),
            ("09:00", "13:00", State::Lasts),
            ("08:30", "12:30", State::Ends),
            // Of five minutes, before half of them is over and long after.
            ("11:48", "12:03", State::Lasts),
            ("11:46", "12:01", State::Ends),
            ("08:00", "12:00", State::Ended),
            ("01:00", "02:00", State::Ended),
        ] {
            assert_eq!(certificate(from, to).at(NOON), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_few_are_asked_and_first_those_that_cannot_renew() {
        let mut pods: Vec<_> = (10..40)
            .map(|at| pod(&format!("p{at}"), &format!("10:{at}:00")))
            .collect();
        pods.reverse();
        // One whose sidecar does not run says nothing.
        pods[0].status = None;
        let (chosen, all) = choose(&pods, &["shop/p30".to_owned()].into());
        assert_eq!((chosen.len(), all), (ASKED, 29));
        let names: Vec<_> = chosen.iter().take(3).map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["p30", "p10", "p11"]);
    }

    #[test]
    fn what_sidecars_tell_is_judged_and_who_is_silent_is_named() {
        let web = pod("web", "10:00:00");
        let silent = || ClusterError::Pod {
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            port: ports::ADMIN,
            reason: "refused".to_owned(),
        };
        let (lasts, ends, ended) = (("11:00", "15:00"), ("08:30", "12:30"), ("01:00", "02:00"));
        let of = |(from, to)| Ok(certificate(from, to));
        for (name, told, absent, levels) in [
            ("lasts", vec![of(lasts)], false, &[Level::Ok][..]),
            ("none", vec![], false, &[]),
            ("ends", vec![of(ends)], false, &[Level::Warning]),
            (
                "ended",
                vec![of(ended), of(lasts)],
                true,
                &[Level::Error, Level::Ok],
            ),
            ("silent", vec![Err(silent())], false, &[Level::Unknown]),
            ("silent and absent", vec![Err(silent())], true, &[]),
        ] {
            let told: Vec<_> = told.into_iter().map(|it| (&web, it)).collect();
            let absent = absent.then(|| "shop/web".to_owned()).into_iter().collect();
            let mut findings = Findings::default();
            judge(&told, told.len(), &absent, NOON, &mut findings);
            let found: Vec<_> = findings.all.iter().map(|it| it.level).collect();
            assert_eq!(found, levels, "{name}");
            for it in findings.all.iter().filter(|it| it.level != Level::Ok) {
                let remedy = it.remedy.as_deref().unwrap_or_default();
                assert!(it.state.contains("shop/web"), "{name}: {}", it.state);
                assert!(
                    remedy.contains("logs web -c tulle-proxy"),
                    "{name}: {remedy}"
                );
            }
        }
    }

    #[test]
    fn others_are_spoken_of_where_not_all_were_asked() {
        let web = pod("web", "10:00:00");
        let told = [(&web, Ok(certificate("11:00", "15:00")))];
        for (all, hint) in [(1, false), (2, true)] {
            let mut findings = Findings::default();
            judge(&told, all, &BTreeSet::new(), NOON, &mut findings);
            let state = &findings.all[0].state;
            assert_eq!(state.contains("tulle proxy certs"), hint, "{state}");
        }
    }
}
