//! `tulle proxy config POD` and the like: what one sidecar has, asked of itself.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::Value;
use tulle_runtime::names::ports;

use super::pods::has_sidecar;
use super::reach::Reach;
use super::{Access, Format, answer, print};
use crate::cluster::error::ClusterError;
use crate::error::CliError;
use crate::output;

/// What to look at.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Look {
    /// Everything that a pod's sidecar was told, as it understood it
    Config(LookArgs),
    /// Clusters of a pod's sidecar: what is open, at work and ejected
    Clusters(LookArgs),
    /// Endpoints of a pod's sidecar
    Endpoints(LookArgs),
    /// Routes of a pod's sidecar
    Routes(LookArgs),
    /// Certificate of a pod's sidecar, and the roots that it trusts
    Certs(LookArgs),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The sidecar is asked on loopback, by port-forward: whoever may do that in the pod's namespace may look.

Examples:
  tulle proxy endpoints shop/web-7d9c
  tulle proxy clusters web-7d9c --namespace shop --output json
  tulle proxy certs shop/web-7d9c")]
pub(crate) struct LookArgs {
    #[command(flatten)]
    access: Access,
    /// NAMESPACE/NAME, or NAME
    pod: String,
    /// Namespace of a pod that is named without one; that of the kubeconfig's context unless given
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) async fn run(look: Look) -> Result<ExitCode, CliError> {
    let (args, path, table): (_, _, fn(&Value) -> String) = match look {
        Look::Config(args) => (args, "/config_dump", everything),
        Look::Clusters(args) => (args, "/clusters", clusters),
        Look::Endpoints(args) => (args, "/clusters", endpoints),
        Look::Routes(args) => (args, "/config_dump", routes),
        Look::Certs(args) => (args, "/certs", certs),
    };
    let client = args.access.client().await?;
    let (namespace, pod) = args.named(client.default_namespace())?;
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("find pod {namespace}/{pod}");
    let found = answer(&what, api.get_opt(pod)).await?;
    let found = found.ok_or_else(|| ClusterError::NoSuchPod {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
    })?;
    if !has_sidecar(&found) {
        return Err(ClusterError::NoSidecar(format!("{namespace}/{pod}")).into());
    }
    let reach = Reach {
        client: &client,
        namespace,
        pod,
        port: ports::ADMIN,
    };
    let told: Value = reach.get(path).await?;
    print(args.output, &told, table)?;
    Ok(ExitCode::SUCCESS)
}

impl LookArgs {
    /// Namespace and name of the pod, of whoever says no namespace in this one.
    fn named<'a>(&'a self, default: &'a str) -> Result<(&'a str, &'a str), ClusterError> {
        match (self.pod.split_once('/'), &self.namespace) {
            (Some(("pod" | "pods" | "po", pod)), namespace) => {
                Ok((namespace.as_deref().unwrap_or(default), pod))
            }
            (Some(named), None) => Ok(named),
            (Some(_), Some(_)) => Err(ClusterError::NamedTwice(self.pod.clone())),
            (None, namespace) => Ok((namespace.as_deref().unwrap_or(default), &self.pod)),
        }
    }
}

/// There is no table of everything.
fn everything(told: &Value) -> String {
    format!("{told:#}")
}

fn clusters(told: &Value) -> String {
    let row = |(name, of): (&String, &Value)| {
        let count = |field: &str| of[field].to_string();
        let endpoints = of["endpoints"].as_array().map_or(0, Vec::len);
        [
            name.clone(),
            endpoints.to_string(),
            count("ejected"),
            count("connections"),
            count("active"),
            count("pending"),
            count("retries"),
        ]
    };
    let header = [
        "CLUSTER",
        "ENDPOINTS",
        "EJECTED",
        "CONNECTIONS",
        "ACTIVE",
        "PENDING",
        "RETRIES",
    ];
    output::aligned(header, members(told).map(row))
}

fn endpoints(told: &Value) -> String {
    let rows = members(told).flat_map(|(cluster, of)| {
        let row = move |endpoint: &Value| {
            [
                word(&endpoint["address"]),
                word(&endpoint["health"]),
                if endpoint["mtls"] == true {
                    "mTLS"
                } else {
                    "plaintext"
                }
                .to_owned(),
                word(&endpoint["weight"]),
                word(&endpoint["active"]),
                word(&endpoint["consecutive_failures"]),
                word(&endpoint["workload"]),
                cluster.clone(),
            ]
        };
        of["endpoints"].as_array().into_iter().flatten().map(row)
    });
    let header = [
        "ENDPOINT", "HEALTH", "TLS", "WEIGHT", "ACTIVE", "FAILURES", "WORKLOAD", "CLUSTER",
    ];
    output::aligned(header, rows)
}

fn routes(told: &Value) -> String {
    let rows = members(&told["routes"]).flat_map(|(table, routes)| {
        let hosts = routes["hosts"].as_array();
        let within: Vec<(String, &Value)> = match hosts {
            None => vec![("*".to_owned(), routes)],
            Some(hosts) => hosts
                .iter()
                .map(|host| (list(&host["domains"]), &host["routes"]))
                .collect(),
        };
        within.into_iter().flat_map(move |(host, routes)| {
            let row = move |route: &Value| {
                [
                    table.clone(),
                    host.clone(),
                    matches(&route["matches"]),
                    action(&route["action"]),
                ]
            };
            routes
                .as_array()
                .into_iter()
                .flatten()
                .map(row)
                .collect::<Vec<_>>()
        })
    });
    output::aligned(["ROUTES", "HOST", "MATCH", "ACTION"], rows)
}

fn certs(told: &Value) -> String {
    let own = [
        word(&told["id"]),
        if told["valid"] == true {
            "valid"
        } else {
            "NOT VALID"
        }
        .to_owned(),
        word(&told["not_after"]),
        word(&told["serial"]),
    ];
    let roots = told["roots"].as_array().into_iter().flatten().map(|root| {
        [
            word(&root["subject"]),
            "root".to_owned(),
            word(&root["not_after"]),
            word(&root["serial"]),
        ]
    });
    output::aligned(
        ["CERTIFICATE", "STATE", "UNTIL", "SERIAL"],
        std::iter::once(own).chain(roots),
    )
}

fn members(told: &Value) -> impl Iterator<Item = (&String, &Value)> {
    told.as_object().into_iter().flatten()
}

fn word(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn list(values: &Value) -> String {
    let words = values.as_array().into_iter().flatten().map(word);
    words.collect::<Vec<_>>().join(",")
}

/// What a request must have: `GET prefix /a header x=y`.
fn matches(matches: &Value) -> String {
    let mut words = Vec::new();
    words.extend(matches["method"].as_str().map(ToOwned::to_owned));
    words.extend(members(&matches["path"]).map(|(kind, path)| format!("{kind} {}", word(path))));
    for (name, kind) in [("headers", "header"), ("query", "query")] {
        let of = matches[name].as_array().into_iter().flatten();
        words.extend(of.map(|it| format!("{kind} {}", word(&it["name"]))));
    }
    words.join(" ")
}

/// What becomes of it: `forward a (90), b (10)`.
fn action(action: &Value) -> String {
    let Some((kind, of)) = members(action).next() else {
        return word(action);
    };
    match of {
        Value::Object(_) if of["clusters"].is_array() => {
            let clusters = of["clusters"].as_array().into_iter().flatten();
            let parts = clusters.map(|it| match it["weight"].as_u64() {
                Some(1) | None => word(&it["name"]),
                Some(weight) => format!("{} ({weight})", word(&it["name"])),
            });
            format!("{kind} {}", parts.collect::<Vec<_>>().join(", "))
        }
        Value::Object(_) => format!("{kind} {of}"),
        other => format!("{kind} {}", word(other)),
    }
}

#[cfg(test)]
mod tests;
