//! Whether injectors can follow the namespaces whose pods they decide on. Only they know: reviews go on by what was known.

use futures_util::future;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{CONTROL_NAMESPACE, INJECTOR, labels, ports};

use super::finding::Findings;
use crate::cluster::error::ClusterError;
use crate::cluster::pods::runs;
use crate::cluster::reach::Reach;
use crate::cluster::{answer, ours};

/// The subject of what is found here.
const SUBJECT: &str = "namespaces of injectors";
/// 1 where namespaces have not been listed for long.
const STALE: &str = "tulle_injector_namespaces_stale";

/// An injector, as whom it asks the API server, and whether what it knows is old.
struct Asked {
    pod: String,
    account: String,
    told: Result<Option<bool>, ClusterError>,
}

/// Asks each injector that runs.
pub(super) async fn look(client: &Client, findings: &mut Findings) {
    let api: Api<Pod> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let pods = match answer("list the pods of the injector", api.list(&ours())).await {
        Ok(pods) => pods.items,
        Err(error) => return findings.unknown(SUBJECT, &error),
    };
    let asked = pods.iter().filter(|pod| is_injector(pod)).map(|pod| async {
        let name = pod.name_any();
        let reach = Reach {
            client,
            namespace: CONTROL_NAMESPACE,
            pod: &name,
            port: ports::CONTROL_ADMIN,
        };
        let told = reach.text("/metrics").await.map(|text| is_stale(&text));
        let account = pod
            .spec
            .as_ref()
            .and_then(|it| it.service_account_name.clone());
        Asked {
            account: account.unwrap_or_else(|| INJECTOR.to_owned()),
            pod: name.clone(),
            told,
        }
    });
    judge(future::join_all(asked).await, findings);
}

/// Whether it is one, of any revision, and stays.
fn is_injector(pod: &Pod) -> bool {
    let name = pod.labels().get(labels::APP_NAME);
    let rest = name.and_then(|name| name.strip_prefix(INJECTOR));
    let ours = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    ours && runs(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// What its metrics say; nothing where they do not have it, as those of another release.
fn is_stale(metrics: &str) -> Option<bool> {
    let mut values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(STALE)?;
        rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
    });
    values.next().map(|value| value > 0.0)
}

fn judge(all: Vec<Asked>, findings: &mut Findings) {
    let mut follow = 0_usize;
    for Asked { pod, account, told } in all {
        let subject = format!("{SUBJECT} ({pod})");
        match told {
            Ok(Some(true)) => findings.warning(
                subject,
                "it cannot follow them: it goes by what it knew, and keeps out each pod that this would leave alone unless the API \
                 server says of its namespace that it may",
                format!(
                    "see why: kubectl -n {CONTROL_NAMESPACE} logs {pod}; and whether it may: kubectl auth can-i list namespaces \
                     --as=system:serviceaccount:{CONTROL_NAMESPACE}:{account}"
                ),
            ),
            Ok(Some(false)) => follow += 1,
            Ok(None) => {}
            // Who may not ask one may ask none.
            Err(error @ ClusterError::Forbidden { .. }) => {
                return findings.unknown(SUBJECT, &error);
            }
            Err(error) => findings.unknown(subject, &error),
        }
    }
    if follow > 0 {
        findings.ok(SUBJECT, format!("{follow} injectors follow them"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn metrics_say_whether_namespaces_are_followed() {
        let help = "# HELP tulle_injector_namespaces_stale 1 while\n# TYPE tulle_injector_namespaces_stale gauge\n";
        for (metrics, expected) in [
            (
                format!("{help}tulle_injector_namespaces_stale 1\n"),
                Some(true),
            ),
            (
                format!("{help}tulle_injector_namespaces_stale 0\n"),
                Some(false),
            ),
            (format!("{help}tulle_injector_namespaces 7\n"), None),
            (String::new(), None),
        ] {
            assert_eq!(is_stale(&metrics), expected, "{metrics}");
        }
    }

    #[test]
    fn injectors_that_stay_are_asked() {
        let pod = |name: &str, phase: &str, ends: bool| -> Pod {
            let mut metadata = json!({ "labels": { "app.kubernetes.io/name": name } });
            if ends {
                metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(json!({ "metadata": metadata, "status": { "phase": phase } }))
                .expect("a pod")
        };
        for (pod, expected) in [
            (pod("tulle-injector", "Running", false), true),
            (pod("tulle-injector-next", "Running", false), true),
            (pod("tulle-injector", "Running", true), false),
            (pod("tulle-injector", "Pending", false), false),
            (pod("tulle-injectors", "Running", false), false),
            (pod("tulle-control", "Running", false), false),
        ] {
            assert_eq!(is_injector(&pod), expected, "{pod:?}");
        }
    }

    #[test]
    fn an_injector_that_cannot_follow_namespaces_is_found() {
        let silent = || ClusterError::Pod {
            namespace: CONTROL_NAMESPACE.to_owned(),
            pod: "b".to_owned(),
            port: ports::CONTROL_ADMIN,
            reason: "refused".to_owned(),
        };
        for (name, told, levels) in [
            ("well", vec![Ok(Some(false))], &[Level::Ok][..]),
            ("another release", vec![Ok(None)], &[]),
            ("none", vec![], &[]),
            ("stale", vec![Ok(Some(true))], &[Level::Warning]),
            (
                "one of two",
                vec![Ok(Some(true)), Ok(Some(false))],
                &[Level::Warning, Level::Ok],
            ),
            ("silent", vec![Err(silent())], &[Level::Error]),
        ] {
            let mut findings = Findings::default();
            let asked = told.into_iter().map(|told| Asked {
                pod: "b".to_owned(),
                account: "tulle-injector-next".to_owned(),
                told,
            });
            judge(asked.collect(), &mut findings);
            let found: Vec<_> = findings.all.iter().map(|it| it.level).collect();
            assert_eq!(found, levels, "{name}");
            for it in findings.all.iter().filter(|it| it.level == Level::Warning) {
                let remedy = it.remedy.as_deref().unwrap_or_default();
                assert!(remedy.ends_with(":tulle-injector-next"), "{remedy}");
            }
        }
    }
}
