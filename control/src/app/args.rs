//! The command line of the control plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tulle_identity::TrustDomain;
use tulle_runtime::env::parse_duration;
use tulle_runtime::names::{self, ports};

/// Settings of the control plane.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of Kubernetes manifests to serve, watched for changes. May be repeated: of two objects with the same
    /// kind, namespace and name the one in the later directory counts.
    #[arg(long, value_name = "DIR", required = true)]
    pub source: Vec<PathBuf>,

    /// Directory where the CA keeps its root certificate and key (`ca.json`, mode 0600). Made with a new root if it is
    /// empty; losing it means a new mesh.
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Directory where the trust bundle is written as `root.pem`, for workloads to mount.
    #[arg(long, value_name = "DIR")]
    pub bundle_dir: PathBuf,

    /// JWKS file with the keys that sign service account tokens. Read anew for each check, so it may change.
    #[arg(long, value_name = "FILE")]
    pub jwks: PathBuf,

    /// Issuer (`iss`) of service account tokens.
    #[arg(
        long,
        value_name = "ISSUER",
        default_value = "https://kubernetes.default.svc.cluster.local"
    )]
    pub token_issuer: String,

    /// Trust domain of the mesh: the first part of every identity.
    #[arg(long, value_name = "NAME", default_value = names::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,

    /// DNS domain of the cluster.
    #[arg(long, value_name = "NAME", default_value = names::DEFAULT_CLUSTER_DOMAIN)]
    pub cluster_domain: String,

    /// Address for proxies: discovery and certificates, over TLS.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ports::XDS)))]
    pub xds_address: SocketAddr,

    /// Address for operators. On loopback it serves everything; on any other address only /ready and /metrics.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::CONTROL_ADMIN)))]
    pub admin_address: SocketAddr,

    /// How long workload certificates live; they are renewed at half of it. At most 24h unless you know better, at least
    /// a few seconds.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = leaf_ttl)]
    pub leaf_ttl: Duration,

    /// In a root rotation, how long a new root is only announced before it signs: as long as a changed bundle takes to
    /// reach every workload.
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = parse_duration)]
    pub root_propagation: Duration,

    /// Log filter, such as `info` or `info,tulle_control::discovery=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = names::variables::LOG)]
    pub log: String,
}

/// Shortest life of a leaf that leaves time to renew it.
const SHORTEST_LEAF: Duration = Duration::from_secs(2);

fn leaf_ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        ttl if ttl < SHORTEST_LEAF => Err(format!(
            "certificates must live for at least {SHORTEST_LEAF:?}"
        )),
        ttl => Ok(ttl),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

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
        assert_eq!(args.xds_address.to_string(), "0.0.0.0:15012");
        assert_eq!(args.admin_address.to_string(), "127.0.0.1:15014");
        assert_eq!(args.leaf_ttl, Duration::from_secs(24 * 3600));
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
        ] {
            let error = parse(&[option, value]).expect_err(value);
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
        assert!(parse(&["--leaf-ttl", "10s"]).is_ok());
    }
}
