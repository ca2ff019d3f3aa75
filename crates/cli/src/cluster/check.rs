//! `tulle check`: whether a cluster can have the mesh, and whether the one that it has works.
//!
//! Each finding says what was looked at, how it is, and what to do. What cannot be looked at is a finding, too.

mod annotations;
mod asked;
mod before;
mod certificates;
mod connected;
mod deployments;
mod finding;
mod informed;
mod injectors;
mod installed;
mod nodes;
mod objects;
mod parts;
mod policies;
mod ranges;
mod refused;
mod routes;
mod said;
mod unmade;
mod unstarted;
mod webhook;
mod workloads;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kube::Client;
use tokio::time::{Instant, sleep};
use tulle_runtime::env::parse_duration;

use super::{Access, Format, INCOMPLETE, print};
use crate::error::CliError;
use crate::progress::Progress;
pub(super) use asked::ask_for;
use finding::{Findings, Level};
use injectors::Injectors;
pub(super) use installed::some;
use workloads::Scope;

/// Between two looks of one who waits.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
What whoever asks may not see is `unknown`, with the right that it takes, and says nothing against the mesh.

Exits with 1 if something does not work; with 2, and nothing on standard output whatever --output says, if nothing could be asked: \
no cluster to talk to, or an API server that does not answer; with 3 if nothing is known not to, but something is unknown; with 0 otherwise, also \
with warnings. With --wait a rollout of the mesh has to come to its end, too.

Examples:
  tulle check --pre            before anything is installed
  tulle check                  whether what is installed works
  tulle check --namespace shop only the workloads of one namespace
  tulle check --wait=2m        once nothing is wrong any more, for scripts
  tulle check --output json | jq '.[] | select(.level != \"ok\")'")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    access: Access,
    /// Only whether the mesh could be installed
    #[arg(long)]
    pre: bool,
    /// Workloads of this namespace alone
    #[arg(short, long, conflicts_with = "pre")]
    namespace: Option<String>,
    /// Look again until everything works and is rolled out, for so long; 5m unless given
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "5m"
    )]
    wait: Option<Duration>,
    /// How to print the findings
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) async fn run(args: CheckArgs) -> Result<ExitCode, CliError> {
    super::asked(Box::pin(check(args)).await)
}

async fn check(args: CheckArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let until = args.wait.map(|time| Instant::now() + time);
    let findings = loop {
        let found = look(&client, &args).await;
        let works = |it: &Findings| it.worst() < Level::Error && !it.unsettled;
        if found.as_ref().is_ok_and(works)
            || until.is_none_or(|until| Instant::now() + PAUSE > until)
        {
            break found?;
        }
        let mut progress = Progress::new();
        progress.says("something does not work yet, and is looked at again");
        sleep(PAUSE).await;
    };
    print(args.output, &findings.all, |all| finding::table(all))?;
    Ok(match findings.worst() {
        Level::Error => ExitCode::FAILURE,
        Level::Unknown => ExitCode::from(INCOMPLETE),
        // It was waited for in vain.
        Level::Ok | Level::Warning if findings.unsettled && args.wait.is_some() => {
            ExitCode::FAILURE
        }
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
    })
}

impl CheckArgs {
    /// What of the workloads is looked at.
    fn scope<'a>(&'a self, client: &'a Client, injectors: Option<&'a Injectors>) -> Scope<'a> {
        Scope {
            client,
            namespace: self.namespace.as_deref(),
            injectors,
        }
    }
}

async fn look(client: &Client, args: &CheckArgs) -> Result<Findings, CliError> {
    let (mut findings, mut progress) = (Findings::default(), Progress::new());
    let found = &mut findings;
    progress.says("asking the API server");
    before::version(client, found).await?;
    progress.says("looking at the clocks of nodes");
    nodes::clocks(client, found).await;
    let mut injectors = None;
    if args.pre {
        progress.says("asking what may be written");
        before::permissions(client, found).await;
        before::restricted(client, found).await;
    } else {
        progress.says("looking at the installation");
        let deployments = deployments::list(client).await;
        injectors = deployments.as_deref().ok().map(Injectors::of);
        if let Ok(deployments) = &deployments {
            parts::look(client, deployments, found).await;
        }
        let control = deployments::look(client, deployments, found).await;
        progress.says("trying the webhooks");
        installed::webhooks(client, injectors.as_ref(), found).await;
        progress.says("asking the injectors");
        informed::look(client, found).await;
        let scope = args.scope(client, None);
        progress.says("looking at pods with sidecars");
        let pods = unstarted::look(&scope, found).await;
        if control {
            progress.says("asking the control plane");
            said::look(&scope, pods, found).await;
        }
    }
    progress.says("looking at nodes");
    let classic = injectors.as_ref().is_some_and(Injectors::are_classic);
    nodes::kubelets(client, classic, found).await;
    let scope = args.scope(client, injectors.as_ref());
    progress.says("looking at routes");
    routes::look(&scope, args.pre, found).await;
    progress.says("looking at workloads");
    workloads::look(&scope, found).await;
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::args::{Cli, Command};
    use crate::cluster::hand_written::api_server;

    /// A cluster of which one can see pods alone; the sidecar of one does not start.
    fn pods(path: &str) -> Option<Value> {
        match path {
            "/version" => Some(json!({
                "major": "1", "minor": "36", "gitVersion": "v1.36.0", "buildDate": "", "compiler": "", "gitCommit": "",
                "gitTreeState": "", "goVersion": "", "platform": "",
            })),
            "/api/v1/pods" => {
                let status = json!({
                    "name": "tulle-capture", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "waiting": { "reason": "ImagePullBackOff" } },
                });
                let capture = json!({ "name": "tulle-capture" });
                let pod = json!({
                    "metadata": { "name": "web", "namespace": "shop", "creationTimestamp": "2020-01-01T00:00:00Z" },
                    "spec": { "initContainers": [capture], "containers": [] },
                    "status": { "phase": "Pending", "initContainerStatuses": [status] },
                });
                Some(json!({ "metadata": {}, "items": [pod] }))
            }
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_pod_that_does_not_start_is_found_also_where_no_control_plane_can_be_asked() {
        let Command::Check(args) = Cli::parse_from(["tulle", "check"]).command else {
            panic!("another command");
        };
        let findings = look(&api_server(pods), &args).await.expect("it answers");
        let found = findings.all.iter().find(|it| it.subject == "sidecars");
        let state = found.map(|it| it.state.as_str()).unwrap_or_default();
        assert!(state.contains("shop/web: ImagePullBackOff"), "{findings:?}");
    }
}
