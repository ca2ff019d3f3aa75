//! What the replicas of the control plane say, each asked for itself: one that is silent does not hide what the others know.

use futures_util::future;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tulle_runtime::names::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, labels, ports};

use super::pods::runs;
use super::reach::Reach;
use super::{answer, ours};
use crate::cluster::error::ClusterError;

/// What was heard from whom.
#[derive(Debug)]
pub(super) struct Answers<T> {
    /// By the name of the replica.
    pub(super) heard: Vec<(String, T)>,
    /// The replicas that do not answer, and why.
    pub(super) silent: Vec<(String, ClusterError)>,
}

impl<T> Answers<T> {
    pub(super) fn of(answers: Vec<(String, Result<T, ClusterError>)>) -> Self {
        let (mut heard, mut silent) = (Vec::new(), Vec::new());
        for (replica, answer) in answers {
            match answer {
                Ok(told) => heard.push((replica, told)),
                Err(error) => silent.push((replica, error)),
            }
        }
        Self { heard, silent }
    }
}

/// The replicas that run, of every revision.
///
/// # Errors
/// If there are none, or they cannot be listed.
pub(super) async fn replicas(client: &Client) -> Result<Vec<String>, ClusterError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let pods = answer("list the pods of the control plane", api.list(&ours())).await?;
    let is_control = |pod: &Pod| {
        let name = pod.labels().get(labels::APP_NAME);
        name.is_some_and(|name| {
            name == CONTROL_SERVICE_ACCOUNT
                || name.starts_with(&format!("{CONTROL_SERVICE_ACCOUNT}-"))
        })
    };
    let replicas: Vec<_> = pods
        .iter()
        .filter(|pod| is_control(pod) && runs(pod))
        .map(|pod| pod.name_any())
        .collect();
    match replicas.is_empty() {
        true => Err(ClusterError::NoControlPlane),
        false => Ok(replicas),
    }
}

/// Asks all of them at once.
pub(super) async fn ask<T: DeserializeOwned>(
    client: &Client,
    replicas: &[String],
    path: &str,
) -> Answers<T> {
    let asked = replicas.iter().map(|replica| async move {
        let reach = Reach {
            client,
            namespace: CONTROL_NAMESPACE,
            pod: replica,
            port: ports::CONTROL_ADMIN,
        };
        (replica.clone(), reach.get(path).await)
    });
    Answers::of(future::join_all(asked).await)
}
