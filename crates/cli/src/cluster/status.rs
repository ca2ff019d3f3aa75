//! `tulle status`: every proxy, and what it has taken of its configuration.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Client;
use kube::api::Api;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tulle_runtime::names::CONTROL_NAMESPACE;

use super::connected;
use super::control::{self, Answers};
use super::{Access, Format, ago, answer, print};
use crate::cluster::error::ClusterError;
use crate::error::CliError;
use crate::output;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The columns CDS, EDS, LDS and RDS say how far a proxy is with clusters, endpoints, listeners and routes:
  SYNCED    it has acknowledged the newest that it was sent
  STALE     it was sent something that it has not answered yet
  REJECTED  it refuses something and goes on with what it had; --output json says what and why
  -         it has asked for nothing of the kind

A pod that has a sidecar, has run for a minute, and is connected to no replica is \"not connected\" under CONTROL PLANE: it goes on \
with what it had until its certificate ends. It is \"unknown\" if a replica does not answer that may know it.

ACKNOWLEDGED is when it last took something, of any type; --output json says it of each.

What the replicas of the control plane that answer say is shown; those that do not are named.

Exits with 1 if any proxy rejects something or is not connected, or a replica of the control plane does not answer; with \
2, and nothing on standard output, if nothing could be asked: no cluster to talk to, an API server that does not answer, or no \
right to ask.

Examples:
  tulle status
  tulle status --namespace shop
  tulle status --output json | jq '.[] | select(.types[].rejected != [])'")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    access: Access,
    /// Only proxies of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Of a type of which a proxy has something to answer.
const STALE: &str = "STALE";
/// How long one that no replica tells of may be on its way to another.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Where a replica says which proxies it has.
pub(super) const PATH: &str = "/debug/proxies";

/// A connected proxy, as a replica of the control plane sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Proxy {
    /// `NAMESPACE/NAME`.
    pub(super) pod: String,
    kind: String,
    identity: String,
    address: String,
    build: String,
    connected_seconds: u64,
    types: BTreeMap<String, Type>,
    /// The replica.
    #[serde(default)]
    control: String,
    /// Absent where a replica that may have it does not answer.
    #[serde(default = "it_is")]
    connected: Option<bool>,
}

/// Of whatever a replica tells.
fn it_is() -> Option<bool> {
    Some(true)
}

/// How far a proxy is with one type of resource.
#[derive(Debug, Serialize, Deserialize)]
struct Type {
    wildcard: bool,
    subscribed: usize,
    pending: usize,
    unacknowledged: usize,
    acked_version: Option<String>,
    /// When it last accepted something, and refused something.
    #[serde(default)]
    acknowledged: Option<String>,
    #[serde(default)]
    refused: Option<String>,
    rejected: Vec<String>,
    last_error: Option<String>,
    /// Of what it has answered last.
    #[serde(default)]
    acked_nonce: Option<String>,
}

impl Proxy {
    /// Whether it refuses something that it was sent.
    pub(super) fn rejects(&self) -> bool {
        self.types.values().any(|it| !it.rejected.is_empty())
    }

    /// The types of which it was sent something that it has not answered yet, with what it has answered last.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let stale = self.types.iter().filter(|(_, it)| it.word() == STALE);
        stale.map(|(kind, it)| (kind.as_str(), it.acked_nonce.as_deref()))
    }

    /// A sidecar that no replica tells of.
    fn absent(pod: &Pod, connected: Option<bool>) -> Self {
        let ip = pod.status.as_ref().and_then(|it| it.pod_ip.clone());
        Self {
            pod: connected::name(pod),
            kind: String::new(),
            identity: String::new(),
            address: ip.unwrap_or_default(),
            build: String::new(),
            connected_seconds: 0,
            types: BTreeMap::new(),
            control: String::new(),
            connected,
        }
    }

    /// When it last accepted anything; what is written like this sorts by time.
    fn acknowledged(&self) -> Option<&str> {
        let times = self.types.values().map(|it| it.acknowledged.as_deref());
        times.max().flatten()
    }

    /// Whether it is a sidecar of ours that was not built as this version.
    pub(super) fn is_of_another_version(&self, version: &str) -> bool {
        self.kind == "tulle"
            && !self
                .build
                .split([' ', '/', '-'])
                .any(|word| word == version)
    }
}

impl Type {
    fn word(&self) -> &'static str {
        if !self.rejected.is_empty() {
            "REJECTED"
        } else if self.pending > 0 || self.unacknowledged > 0 {
            STALE
        } else if self.wildcard || self.subscribed > 0 {
            "SYNCED"
        } else {
            "-"
        }
    }
}

pub(crate) async fn run(args: StatusArgs) -> Result<ExitCode, CliError> {
    super::asked(status(args).await)
}

async fn status(args: StatusArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let replicas = control::replicas(&client).await?;
    let Answers { heard, mut silent } = control::ask(&client, &replicas, PATH).await;
    if let (true, Some((_, ClusterError::Forbidden { .. }))) = (heard.is_empty(), silent.first()) {
        return Err(silent.swap_remove(0).1.into());
    }
    let is_heard = !heard.is_empty();
    let mut proxies = collect(heard);
    if is_heard {
        let namespace = args.namespace.as_deref();
        match connected::expected(&client, namespace).await {
            Ok(pods) => {
                if !connected::missing(&pods, &proxies).is_empty() {
                    sleep(ON_ITS_WAY).await;
                    let again = control::ask(&client, &replicas, PATH).await;
                    (proxies, silent) = (collect(again.heard), again.silent);
                }
                complete(&mut proxies, &pods, silent.is_empty());
            }
            Err(error) => output::warning(&format!(
                "sidecars that are not connected cannot be seen: {}",
                error.reason()
            )),
        }
    }
    if let Some(namespace) = &args.namespace {
        let within = |proxy: &Proxy| {
            proxy
                .pod
                .split_once('/')
                .is_some_and(|(of, _)| of == namespace)
        };
        proxies.retain(within);
    }
    if !proxies.is_empty() || args.output != Format::Table {
        print(args.output, &proxies, |proxies| table(proxies))?;
    } else if silent.is_empty() {
        match &args.namespace {
            Some(namespace) => {
                exists(&client, namespace).await?;
                output::note(&format!(
                    "No proxy of namespace {namespace} is connected to the control plane."
                ));
            }
            None => output::note("No proxy is connected to the control plane."),
        }
    }
    for (pod, error) in &silent {
        output::warning(&format!(
            "{CONTROL_NAMESPACE}/{pod} does not say which proxies it has: {}",
            error.reason()
        ));
    }
    Ok(verdict(&proxies, silent.len()))
}

/// Fails where it is known that there is no such namespace.
async fn exists(client: &Client, namespace: &str) -> Result<(), ClusterError> {
    let api: Api<Namespace> = Api::all(client.clone());
    match answer("find the namespace", api.get_opt(namespace)).await {
        Ok(None) => Err(ClusterError::NoSuchNamespace(namespace.to_owned())),
        Ok(Some(_)) | Err(ClusterError::Forbidden { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn verdict(proxies: &[Proxy], silent: usize) -> ExitCode {
    let well = |it: &Proxy| !it.rejects() && it.connected != Some(false);
    match silent == 0 && proxies.iter().all(well) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Every proxy that is connected to any of those that answer, by its pod's name.
pub(super) fn collect(heard: Vec<(String, Vec<Proxy>)>) -> Vec<Proxy> {
    let seen = heard.into_iter().flat_map(|(control, seen)| {
        seen.into_iter().map(move |proxy| Proxy {
            control: control.clone(),
            ..proxy
        })
    });
    let mut proxies: Vec<_> = seen.collect();
    proxies.sort_by(|a, b| a.pod.cmp(&b.pod));
    proxies
}

/// Adds those of the pods that no replica tells of.
fn complete(proxies: &mut Vec<Proxy>, pods: &[Pod], all_answer: bool) {
    let connected = all_answer.then_some(false);
    let absent = connected::missing(pods, proxies);
    let absent: Vec<_> = absent
        .into_iter()
        .map(|pod| Proxy::absent(pod, connected))
        .collect();
    proxies.extend(absent);
    proxies.sort_by(|a, b| a.pod.cmp(&b.pod));
}

fn table(proxies: &[Proxy]) -> String {
    let row = |proxy: &Proxy| {
        let word = |kind: &str| proxy.types.get(kind).map_or("-", Type::word).to_owned();
        let (since, control) = match proxy.connected {
            Some(true) => (ago(proxy.connected_seconds), proxy.control.clone()),
            Some(false) => (nothing(""), "not connected".to_owned()),
            None => (nothing(""), "unknown".to_owned()),
        };
        [
            proxy.pod.clone(),
            nothing(&proxy.kind),
            word("CDS"),
            word("EDS"),
            word("LDS"),
            word("RDS"),
            proxy.acknowledged().unwrap_or("-").to_owned(),
            since,
            nothing(&proxy.build),
            control,
        ]
    };
    let header = [
        "POD",
        "KIND",
        "CDS",
        "EDS",
        "LDS",
        "RDS",
        "ACKNOWLEDGED",
        "SINCE",
        "BUILD",
        "CONTROL PLANE",
    ];
    output::aligned(header, proxies.iter().map(row))
}

/// A word, or that there is none.
fn nothing(word: &str) -> String {
    if word.is_empty() { "-" } else { word }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(rejected: &[&str], pending: usize) -> Proxy {
        let text = serde_json::json!({
            "pod": "shop/web", "kind": "tulle", "identity": "spiffe://a/ns/shop/sa/web", "address": "10.0.0.1:1",
            "build": "0.1.0", "connected_seconds": 7, "types": { "LDS": {
                "wildcard": false, "subscribed": 1, "pending": pending, "sent_nonce": "1", "acked_nonce": "1",
                "acked_version": "3", "acknowledged": "2026-01-01T00:00:00Z", "unacknowledged": 0, "rejected": rejected, "last_error": null,
            } },
        });
        serde_json::from_value(text).expect("as the control plane says it")
    }

    #[test]
    fn the_worst_of_a_type_is_said() {
        let words =
            [proxy(&[], 0), proxy(&[], 2), proxy(&["x"], 2)].map(|it| it.types["LDS"].word());
        assert_eq!(words, ["SYNCED", "STALE", "REJECTED"]);
        let text = table(&[proxy(&[], 0)]);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0]
                .starts_with("POD       KIND   CDS  EDS  LDS     RDS  ACKNOWLEDGED          SINCE"),
            "{text}"
        );
        assert!(
            lines[1]
                .starts_with("shop/web  tulle  -    -    SYNCED  -    2026-01-01T00:00:00Z  7s"),
            "{text}"
        );
    }

    #[test]
    fn a_sidecar_that_no_replica_tells_of_has_a_row() {
        let pod = |name: &str| -> Pod {
            let metadata = serde_json::json!({ "name": name, "namespace": "shop" });
            serde_json::from_value(serde_json::json!({ "metadata": metadata })).expect("a pod")
        };
        let pods = [pod("web"), pod("api")];
        for (all_answer, words, status) in [
            (true, "not connected", ExitCode::FAILURE),
            (false, "unknown", ExitCode::SUCCESS),
        ] {
            let mut proxies = vec![proxy(&[], 0)];
            complete(&mut proxies, &pods, all_answer);
            let text = table(&proxies);
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), 3, "{text}");
            assert!(
                lines[1].starts_with("shop/api  -      -    -    -"),
                "{text}"
            );
            assert!(lines[1].ends_with(words), "{text}");
            assert!(lines[2].starts_with("shop/web  tulle"), "{text}");
            assert_eq!(verdict(&proxies, 0), status, "{words}");
        }
    }

    #[test]
    fn those_who_answer_are_heard_and_the_others_named() {
        let failed = || ClusterError::NoControlPlane;
        let answers = |b: Result<Vec<Proxy>, ClusterError>| {
            Answers::of(vec![
                ("control-a".to_owned(), Ok(vec![proxy(&[], 0)])),
                ("control-b".to_owned(), b),
            ])
        };
        let Answers { heard, silent } = answers(Err(failed()));
        let proxies = collect(heard);
        assert_eq!(
            (proxies.len(), proxies[0].control.as_str()),
            (1, "control-a")
        );
        assert_eq!((silent.len(), silent[0].0.as_str()), (1, "control-b"));
        assert!(answers(Ok(vec![proxy(&[], 0)])).silent.is_empty());
        for (proxies, silent, expected) in [
            (vec![proxy(&[], 1)], 0, ExitCode::SUCCESS),
            (vec![], 0, ExitCode::SUCCESS),
            (vec![proxy(&[], 0)], 1, ExitCode::FAILURE),
            (vec![proxy(&[], 0), proxy(&["x"], 0)], 0, ExitCode::FAILURE),
        ] {
            let told = format!("{proxies:?} {silent}");
            assert_eq!(verdict(&proxies, silent), expected, "{told}");
        }
    }
}
