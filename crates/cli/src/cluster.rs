//! Commands that look at a cluster: which one, and the ways into its pods.
//!
//! What a pod serves on loopback is reached by port-forward, as `kubectl` does, so that nothing has to be exposed and the API
//! server decides who may.

pub(crate) mod check;
mod owned;
pub(crate) mod proxy;
mod reach;
mod sidecars;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod upgrade;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde::Serialize;
use tulle_runtime::names::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, labels};

use crate::error::CliError;
use crate::output;

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

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
    async fn client(&self) -> Result<Client, CliError> {
        let failed = |error: &dyn std::error::Error| CliError::Kubeconfig(output::chain(error));
        let config = match &self.context {
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

/// What the API server answers, if it does in time.
async fn answer<T>(
    what: &str,
    asked: impl Future<Output = kube::Result<T>>,
) -> Result<T, CliError> {
    let failed = |reason| CliError::Cluster {
        what: what.to_owned(),
        reason,
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(failed(status.message)),
        Ok(Err(error)) => Err(failed(output::chain(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// The control plane's pods that run, of every revision.
async fn control_pods(client: &Client) -> Result<Vec<Pod>, CliError> {
    let selector = format!("{}={}", labels::PART_OF, labels::PART_OF_TULLE);
    let list = ListParams::default().labels(&selector);
    let api: Api<Pod> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let pods = answer("list the pods of the control plane", api.list(&list)).await?;
    let is_control = |pod: &Pod| {
        let name = pod.labels().get(labels::APP_NAME);
        name.is_some_and(|name| {
            name == CONTROL_SERVICE_ACCOUNT
                || name.starts_with(&format!("{CONTROL_SERVICE_ACCOUNT}-"))
        })
    };
    let runs = |pod: &Pod| {
        let status = pod.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some("Running")
    };
    let pods: Vec<_> = pods
        .into_iter()
        .filter(|pod| is_control(pod) && runs(pod))
        .collect();
    if pods.is_empty() {
        return Err(CliError::NoControlPlane);
    }
    Ok(pods)
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
        Format::Yaml => {
            let text = serde_saphyr::to_string(result)
                .map_err(|error| CliError::Render(Box::new(error)))?;
            output::bytes(text.as_bytes())
        }
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
    fn times_are_short() {
        let said = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(ago);
        assert_eq!(said, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
