//! Commands that look at a cluster: which one, and the ways into its pods.
//!
//! What a pod serves on loopback is reached by port-forward, as `kubectl` does, so that nothing has to be exposed and the API
//! server decides who may.

pub(crate) mod check;
mod connected;
mod control;
mod error;
mod forward_proxy;
#[cfg(test)]
mod hand_written;
mod helm;
mod nodes;
mod owned;
mod pods;
pub(crate) mod proxy;
mod reach;
mod refusal;
mod rollouts;
mod sidecars;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod upgrade;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde::Serialize;
use tulle_runtime::names::labels;

use crate::error::CliError;
use crate::output;
pub(crate) use error::ClusterError;

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Exit status where something could not be looked at, and all else is well.
const INCOMPLETE: u8 = 3;

/// Exit status where it could not be done or asked at all; 1 says what was found.
const FAILED: u8 = 2;

/// By which a ReplicaSet of a Deployment tells its pods from those of others; its name ends with it.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct Access {
    /// Context of the kubeconfig (`KUBECONFIG`, or ~/.kube/config); the current one unless given
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// How to print a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// One JSON document
    Json,
    /// The same as YAML
    Yaml,
}

impl Access {
    /// A client of the API server.
    async fn client(&self) -> Result<Client, ClusterError> {
        let failed = |error: &dyn std::error::Error| ClusterError::Kubeconfig(output::chain(error));
        let mut config = match &self.context {
            None => Config::infer().await.map_err(|error| failed(&error))?,
            Some(context) => {
                let options = KubeConfigOptions {
                    context: Some(context.clone()),
                    ..KubeConfigOptions::default()
                };
                let file = Kubeconfig::read().map_err(|error| failed(&error))?;
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| failed(&error))?
            }
        };
        forward_proxy::settle(&mut config);
        Client::try_from(config).map_err(|error| failed(&error))
    }
}

/// Runs a command that talks to the API server.
pub(crate) fn run(
    command: impl Future<Output = Result<ExitCode, CliError>>,
) -> Result<ExitCode, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?
        .block_on(command)
}

/// How a command ends that says by 1 that something does not work: an error that tells nothing of the mesh is no such thing.
fn asked(result: Result<ExitCode, CliError>) -> Result<ExitCode, CliError> {
    match result {
        Err(error) if !error.is_of_the_mesh() => {
            output::error(&error);
            Ok(ExitCode::from(FAILED))
        }
        other => other,
    }
}

/// What the API server answers, if it does in time.
async fn answer<T>(
    what: &str,
    asked: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    let failed = |reason| ClusterError::Unanswered {
        what: what.to_owned(),
        reason,
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(refusal::refused(what, &status)),
        Ok(Err(error)) => Err(failed(output::chain(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// Everything that was installed or written by Tulle, in a list.
fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", labels::PART_OF, labels::PART_OF_TULLE))
}

/// Whether pods of a namespace are to have sidecars.
fn asks(namespace: &Namespace) -> bool {
    let label = |key: &str| namespace.labels().get(key).map(String::as_str);
    labels::ask_for_the_mesh(label(labels::INJECT), label(labels::REVISION))
}

/// Kind and name of an object, as people say them.
fn title(kind: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Prints a result.
fn print<T: Serialize>(
    format: Format,
    result: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    match format {
        Format::Table => output::styled(&table(result)),
        Format::Json => {
            let text = serde_json::to_string_pretty(result)
                .map_err(|error| CliError::Render(error.into()))?;
            output::line(&text)
        }
        Format::Yaml => output::bytes(output::yaml(result)?.as_bytes()),
    }
}

/// Seconds as people say them: `42s`, `17m`, `3h`, `12d`.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_that_could_not_be_asked_is_told_from_one_that_does_not_work() {
        let unanswered = ClusterError::Unanswered {
            what: "ask".to_owned(),
            reason: "no answer".to_owned(),
        };
        let rows = [
            (
                "no kubeconfig",
                ClusterError::Kubeconfig(String::new()),
                Some(FAILED),
            ),
            ("no answer", unanswered, Some(FAILED)),
            ("no mesh", ClusterError::NoControlPlane, None),
            (
                "no namespace",
                ClusterError::NoSuchNamespace(String::new()),
                None,
            ),
        ];
        for (name, error, status) in rows {
            let ended = asked(Err(error.into())).ok();
            assert_eq!(ended, status.map(ExitCode::from), "{name}");
        }
        let found = asked(Ok(ExitCode::FAILURE)).ok();
        assert_eq!(found, Some(ExitCode::FAILURE));
    }

    #[test]
    fn times_are_short() {
        let said = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(ago);
        assert_eq!(said, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
