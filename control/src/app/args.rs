//! The command line of the control plane.

mod limits;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tulle_identity::TrustDomain;
use tulle_runtime::env::parse_duration;
use tulle_runtime::names::{self, ports};
use tulle_runtime::trace;

pub use limits::LimitArgs;

use crate::ca::LONGEST_STAGE;

/// Settings of the control plane.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Take everything from the Kubernetes cluster that this runs in, or that KUBECONFIG names: what to serve, whose a token
    /// is, the CA's root (Secret `tulle-ca`); and write the trust bundle there. Replaces all options that name files.
    #[arg(long, conflicts_with_all = ["source", "state_dir", "bundle_dir", "jwks", "token_issuer"])]
    pub kubernetes: bool,

    /// Directory of Kubernetes manifests to serve, watched for changes. May be repeated: of two objects with the same
    /// kind, namespace and name the one in the later directory counts.
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    pub source: Vec<PathBuf>,

    /// Directory where the CA keeps its root certificate and key (`ca.json`, mode 0600). Made with a new root if it is
    /// empty; losing it means a new mesh.
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    pub state_dir: Option<PathBuf>,

    /// Directory where the trust bundle is written as `root.pem`, for workloads to mount.
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    pub bundle_dir: Option<PathBuf>,

    /// JWKS file with the keys that sign service account tokens. Read anew every second that it is needed, so it may change.
    #[arg(long, value_name = "FILE", required_unless_present = "kubernetes")]
    pub jwks: Option<PathBuf>,

    /// Issuer (`iss`) of service account tokens.
    #[arg(
        long,
        value_name = "ISSUER",
        default_value = "https://kubernetes.default.svc.cluster.local"
    )]
    pub token_issuer: String,

    /// Secret of type kubernetes.io/tls in the control plane's namespace with the certificate and key that sign (tls.crt,
    /// tls.key) and their root (ca.crt), as cert-manager makes them. One that changes is announced before it signs.
    #[arg(long, value_name = "NAME", conflicts_with = "state_dir")]
    pub ca_issuer_secret: Option<String>,

    /// Trust domain of the mesh: the first part of every identity.
    #[arg(long, value_name = "NAME", default_value = names::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,

    /// DNS domain of the cluster.
    #[arg(long, value_name = "NAME", default_value = names::DEFAULT_CLUSTER_DOMAIN, value_parser = cluster_domain)]
    pub cluster_domain: String,

    /// Address for proxies: discovery and certificates, over TLS. `[::]` is every address of both families.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, ports::XDS)))]
    pub xds_address: SocketAddr,

    /// Address for operators. Who comes by way of loopback sees everything, anybody else only /ready and /metrics.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::CONTROL_ADMIN)))]
    pub admin_address: SocketAddr,

    /// How long workload certificates live; they are renewed at half of it. At most 24h unless you know better, at least
    /// a few seconds, at most 4380h.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = leaf_ttl)]
    pub leaf_ttl: Duration,

    /// In a root rotation, how long a new root is only announced before it signs: as long as a changed bundle takes to
    /// reach every workload. At most 4380h.
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = root_propagation)]
    pub root_propagation: Duration,

    /// Log filter, such as `info` or `info,tulle_control::discovery=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = trace::filter, env = names::variables::LOG)]
    pub log: String,

    /// What clients may make grow.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Shortest life of a leaf that leaves time to renew it.
const SHORTEST_LEAF: Duration = Duration::from_secs(2);

/// Longest domain that leaves room in a DNS name for `SERVICE.NAMESPACE.svc.`.
const LONGEST_DOMAIN: usize = 253 - (2 * 64 + 4);

fn leaf_ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        ttl if ttl < SHORTEST_LEAF => Err(format!(
            "certificates must live for at least {SHORTEST_LEAF:?}"
        )),
        ttl => not_too_long(ttl),
    }
}

fn root_propagation(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(not_too_long)
}

/// Both are stages of a root's rotation.
fn not_too_long(stage: Duration) -> Result<Duration, String> {
    if stage <= LONGEST_STAGE {
        return Ok(stage);
    }
    let hours = LONGEST_STAGE.as_secs() / 3600;
    Err(format!(
        "a rotation would outlast its root: give at most {hours}h"
    ))
}

/// A DNS name that names of services can end in.
fn cluster_domain(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= LONGEST_DOMAIN && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "not a DNS domain: give labels of lower-case letters, digits and `-` with single dots between, such as {}, \
         {LONGEST_DOMAIN} characters at most",
        names::DEFAULT_CLUSTER_DOMAIN
    ))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::discovery::Limits;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    const NEEDED: [&str; 9] = [
        "control",
        "--source",
        "a",
        "--state-dir",
        "b",
        "--bundle-dir",
        "c",
        "--jwks",
        "d",
    ];

    fn parse(more: &[&str]) -> Result<Args, String> {
        let words = NEEDED.iter().chain(more);
        Program::try_parse_from(words)
            .map(|program| program.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_documented_ports_and_lifetimes() {
        let args = parse(&["--source", "e"]).expect("all that is needed");
        assert_eq!(args.source, [PathBuf::from("a"), PathBuf::from("e")]);
        assert_eq!(args.xds_address.to_string(), "[::]:15012");
        assert_eq!(args.admin_address.to_string(), "127.0.0.1:15014");
        assert_eq!(args.leaf_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(args.limits.limits(), Limits::default());
    }

    #[test]
    fn a_cluster_replaces_every_file() {
        let of = |words: &[&str]| Program::try_parse_from(words).map(|program| program.args);
        let args = of(&["control", "--kubernetes"]).expect("nothing else is needed");
        assert!(args.kubernetes && args.source.is_empty() && args.state_dir.is_none());
        assert!(of(&["control", "--kubernetes", "--ca-issuer-secret", "ours"]).is_ok());
        assert!(parse(&["--ca-issuer-secret", "ours"]).is_err());
        for option in [
            "--source",
            "--state-dir",
            "--bundle-dir",
            "--jwks",
            "--token-issuer",
        ] {
            let error = of(&["control", "--kubernetes", option, "a"]).expect_err(option);
            assert!(error.to_string().contains(option), "{error}");
        }
        for missing in ["--source", "--state-dir", "--bundle-dir", "--jwks"] {
            let at = NEEDED
                .iter()
                .position(|word| *word == missing)
                .expect("it is needed");
            let words: Vec<_> = NEEDED[..at]
                .iter()
                .chain(&NEEDED[at + 2..])
                .copied()
                .collect();
            let error = of(&words).expect_err(missing).to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn readme_lists_every_limit_with_its_default() {
        let readme = include_str!("../../../README.md");
        let (_, limits) = readme
            .split_once("## Limits of the control plane")
            .expect("its section");
        let rows = || limits.lines().take_while(|line| !line.starts_with("## "));
        let program = Program::command();
        let options = program.get_arguments();
        let options: Vec<_> = options
            .filter(|option| option.get_help_heading() == Some("Limits"))
            .collect();
        assert!(options.len() > 10, "{options:?}");
        for option in options {
            let name = format!("`--{}`", option.get_long().expect("an option"));
            let row = rows().find(|line| line.starts_with('|') && line.contains(&name));
            let row = row.unwrap_or_else(|| panic!("{name} is in no row"));
            let default = option.get_default_values()[0].to_string_lossy();
            let columns: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, _, named, defaults, _, _] = columns[..] else {
                panic!("four columns: {row}");
            };
            assert!(named.contains(&name), "{name}: {row}");
            let mut numbers = defaults.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(
                numbers.any(|number| number == default),
                "{name} {default}: {row}"
            );
        }
    }

    #[test]
    fn one_timeout_is_for_all_that_a_client_has_to_do_first() {
        let args = parse(&[
            "--client-timeout=20s",
            "--unread-timeout=2m",
            "--max-request-bytes=4096",
        ]);
        let limits = args.expect("good values").limits.limits();
        let Limits { connections, .. } = limits;
        let first = [
            limits.first_request,
            limits.certificates.deadline,
            connections.handshake,
            connections.anonymous_grace.spoke,
        ];
        assert_eq!(first, [Duration::from_secs(20); 4]);
        assert!(connections.anonymous_life > limits.certificates.deadline);
        assert_eq!(connections.unread, Duration::from_secs(120));
        assert_eq!(limits.request_bytes, 4096);
    }

    #[test]
    fn bad_values_are_named() {
        for (option, value) in [
            ("--leaf-ttl", "10"),
            ("--leaf-ttl", "1s"),
            ("--trust-domain", "Cluster.Local"),
            ("--trust-domain", ""),
            ("--xds-address", "15012"),
            ("--root-propagation", "soon"),
            ("--max-connections", "0"),
            ("--max-anonymous-connections", "many"),
            ("--max-streams-per-pod", "1.5"),
            ("--max-subscriptions", "0"),
            ("--max-connections-per-client", "0"),
            ("--max-anonymous-connections-per-address", "0"),
            ("--max-handshakes", "0"),
            ("--max-handshakes-per-address", "0"),
            ("--max-control-frames", "0"),
            ("--max-certificates-per-second", "0"),
            ("--max-certificates-at-once", "0"),
            ("--max-names-per-second", "0"),
            ("--max-names-at-once", "0"),
            ("--max-request-bytes", "0"),
            ("--client-timeout", "10"),
            ("--client-timeout", "999ms"),
            ("--unread-timeout", "0s"),
            ("--unread-timeout", "61m"),
            ("--root-propagation", "4381h"),
            ("--root-propagation", "99999999999h"),
            ("--leaf-ttl", "4381h"),
            ("--leaf-ttl", "876000h"),
            ("--cluster-domain", ""),
            ("--cluster-domain", "a..b"),
            ("--cluster-domain", "Cluster.local"),
            ("--cluster-domain", "cluster.local."),
            ("--cluster-domain", "a-.b"),
            ("--cluster-domain", &"a".repeat(64)),
            ("--cluster-domain", &"a.".repeat(80)),
        ] {
            let error = parse(&[option, value]).expect_err(value);
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
        for (option, value) in [
            ("--leaf-ttl", "10s"),
            ("--leaf-ttl", "4380h"),
            ("--root-propagation", "4380h"),
            ("--client-timeout", "1s"),
            ("--unread-timeout", "60m"),
            ("--cluster-domain", "k8s"),
            ("--cluster-domain", "a-1.example.org"),
        ] {
            assert!(parse(&[option, value]).is_ok(), "{option} {value}");
        }
    }
}
