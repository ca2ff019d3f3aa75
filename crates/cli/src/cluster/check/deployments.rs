//! Whether control planes and injectors run, and whether what was changed of them comes about.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{CONTROL_NAMESPACE, labels};

use super::finding::Findings;
use crate::cluster::error::ClusterError;
use crate::cluster::rollouts::{self, Stage};
use crate::cluster::{answer, ours};

/// What runs control planes and injectors.
pub(super) async fn list(client: &Client) -> Result<Vec<Deployment>, ClusterError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let listed = answer("list the Deployments of the mesh", api.list(&ours())).await?;
    Ok(listed.items)
}

/// Whether they run; says whether there is a control plane to ask.
pub(super) async fn look(
    client: &Client,
    deployments: Result<Vec<Deployment>, ClusterError>,
    findings: &mut Findings,
) -> bool {
    let deployments = match deployments {
        Ok(deployments) => deployments,
        Err(error) => {
            findings.unknown("installation", &error);
            return false;
        }
    };
    if deployments.is_empty() {
        let missing = ClusterError::NoControlPlane;
        findings.error("installation", missing.to_string(), missing.next_step());
        return false;
    }
    for deployment in &deployments {
        let stage = rollouts::stage(deployment);
        let why = match stage {
            Stage::Over => None,
            // Without the right to see its pods there is less to say.
            Stage::Under { .. } => rollouts::why(client, deployment).await.ok().flatten(),
        };
        judge(deployment, &stage, why.as_deref(), findings);
    }
    true
}

fn judge(deployment: &Deployment, stage: &Stage, why: Option<&str>, findings: &mut Findings) {
    let name = deployment.name_any();
    let spec = deployment.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.ready_replicas);
    let ready = ready.unwrap_or_default();
    let because = why.map_or_else(String::new, |why| format!("; {why}"));
    let serve = format!("{ready} of {wanted} replicas are ready{because}");
    let remedy = format!(
        "see why: kubectl -n {CONTROL_NAMESPACE} describe pods -l {of}={name}; kubectl -n {CONTROL_NAMESPACE} logs -l {of}={name} \
         --prefix --tail=20",
        of = labels::APP_NAME
    );
    let paused = spec.and_then(|spec| spec.paused) == Some(true);
    match stage {
        _ if wanted == 0 => {
            let remedy = format!(
                "kubectl -n {CONTROL_NAMESPACE} scale deployment/{name} --replicas=2, or as it was installed: tulle upgrade --yes"
            );
            findings.error(name, serve, remedy);
        }
        Stage::Under {
            state, rolls: true, ..
        } if paused && ready > 0 => {
            let remedy = format!("kubectl -n {CONTROL_NAMESPACE} rollout resume deployment/{name}");
            findings.warning(name, format!("its rollout is paused: {state}"), remedy);
        }
        _ if ready == 0 => findings.error(name, serve, remedy),
        Stage::Over => findings.ok(name, serve),
        Stage::Under { state, rolls, .. } => match (rolls, why) {
            (true, Some(_)) => {
                let state = format!("its rollout does not get on: {state}{because}");
                findings.error(name, state, remedy);
            }
            (true, None) => {
                let state = format!("it is being rolled out: {state}");
                findings.unsettled(name, state, "wait for it: tulle check --wait");
            }
            (false, Some(_)) => findings.warning(name, serve, remedy),
            (false, None) => findings.unsettled(name, serve, remedy),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    /// Of two replicas.
    fn deployment(replicas: i32, updated: i32, serve: i32) -> Deployment {
        let template = json!({ "spec": { "containers": [] } });
        serde_json::from_value(json!({
            "metadata": { "name": "tulle-control", "generation": 1 },
            "spec": { "replicas": 2, "selector": {}, "template": template },
            "status": {
                "observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": serve,
                "readyReplicas": serve,
            },
        }))
        .expect("a Deployment")
    }

    #[test]
    fn a_rollout_that_hangs_is_an_error_and_one_under_way_is_to_be_waited_for() {
        let why = Some("web-1: ErrImagePull");
        let (mut off, mut paused) = (deployment(0, 0, 0), deployment(3, 1, 2));
        off.spec.as_mut().expect("a spec").replicas = Some(0);
        paused.spec.as_mut().expect("a spec").paused = Some(true);
        for (name, deployment, why, level, settles) in [
            ("well", deployment(2, 2, 2), None, Level::Ok, false),
            ("hangs", deployment(3, 1, 2), why, Level::Error, false),
            ("under way", deployment(3, 1, 2), None, Level::Warning, true),
            (
                "old ones left",
                deployment(3, 2, 3),
                None,
                Level::Warning,
                true,
            ),
            (
                "one starts",
                deployment(2, 2, 1),
                None,
                Level::Warning,
                true,
            ),
            ("one fails", deployment(2, 2, 1), why, Level::Warning, false),
            ("none", deployment(2, 2, 0), None, Level::Error, false),
            ("none is wanted", off, None, Level::Error, false),
            ("paused", paused, None, Level::Warning, false),
        ] {
            let mut findings = Findings::default();
            judge(
                &deployment,
                &rollouts::stage(&deployment),
                why,
                &mut findings,
            );
            assert_eq!(
                (findings.worst(), findings.unsettled),
                (level, settles),
                "{name}"
            );
            let state = &findings.all[0].state;
            assert!(state.contains(why.unwrap_or_default()), "{name}: {state}");
        }
    }
}
