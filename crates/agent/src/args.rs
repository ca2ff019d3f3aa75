//! What the operator decided: the command line says what to do, the environment says who and where this pod is.
//!
//! The environment is the sidecar's, read whole, so that everything wrong with it is said at once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use tulle_identity::{SpiffeId, workload_id};
use tulle_runtime::env::{Env, EnvErrors};
use tulle_runtime::names::{
    CONTROL_NAMESPACE, DEFAULT_CLUSTER_DOMAIN, PROXY_MARK, agent, ports, variables,
};

/// Streams that the relay carries at a time: as many as the control plane lets one pod have.
const STREAMS: usize = agent::STREAMS as usize;

/// Flags of `tulle agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Directory for tls.crt, tls.key and ca.crt; it must lie in memory
    #[arg(long, value_name = "DIR", default_value = agent::DIR)]
    pub dir: PathBuf,
    /// Group that may read the private key too; the agent must be a member of it
    #[arg(long, value_name = "GID")]
    pub group: Option<u32>,
    /// Write the bootstrap of this client
    #[arg(long, value_name = "CLIENT", requires = "bootstrap_file")]
    pub bootstrap: Option<Client>,
    /// Where to write it
    #[arg(long, value_name = "FILE", requires = "bootstrap")]
    pub bootstrap_file: Option<PathBuf>,
    /// Variant of the protocol that Envoy's bootstrap asks for
    #[arg(long, value_name = "VARIANT", default_value = "delta")]
    pub xds_variant: Variant,
    /// Port of Envoy's admin endpoint, on loopback
    #[arg(long, value_name = "PORT", default_value_t = ports::ADMIN)]
    pub envoy_admin_port: u16,
    /// Relay discovery streams from here to the control plane: 127.0.0.1:PORT, [::1]:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub xds_listen: Option<XdsListen>,
    /// Discovery streams that are relayed at a time
    #[arg(long, value_name = "NUMBER", default_value_t = STREAMS)]
    pub xds_streams: usize,
    /// Answer GET /ready and /metrics at this address
    #[arg(long, value_name = "IP:PORT")]
    pub ready_address: Option<SocketAddr>,
    /// Keep this file for as long as the certificate on disk is good
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Environment, required (by the downward API, as for the sidecar):
  POD_NAME, POD_NAMESPACE, POD_IP, SERVICE_ACCOUNT

Environment, optional:
  TULLE_CONTROL_ADDRESS  control plane, as host:port
  TULLE_TRUST_DOMAIN     trust domain of the mesh
  TULLE_CLUSTER_DOMAIN   DNS domain of the cluster
  TULLE_LOG              log filter, such as info or tulle_agent=debug
  TULLE_DRAIN_DEADLINE   how long relayed streams may go on after SIGTERM, such as 25s
  TULLE_MARK_SOCKETS     true where the agent's sockets must be exempt from capture by mark

Who may read the key: tls.key has mode 0600 and belongs to the user that the agent runs as. Run the reader as the same
user, or name a group that both belong to (`--group`, with fsGroup or supplementalGroups in the pod): then it is 0640.";

/// Programs that a bootstrap can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// Envoy
    Envoy,
    /// gRPC's own xDS client
    Grpc,
}

impl Client {
    /// How node ids of such clients begin.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }
}

/// Variants of the discovery protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Incremental
    Delta,
    /// State of the world
    Sotw,
}

/// Where the relay listens: nowhere that another pod could reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XdsListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for XdsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("write an absolute path: unix:/run/agent/xds.sock".to_owned())
            };
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| "expected 127.0.0.1:PORT, [::1]:PORT or unix:PATH".to_owned())?;
        if !address.ip().is_loopback() {
            return Err(
                "only loopback: whoever reaches the relay is taken for this pod".to_owned(),
            );
        }
        Ok(Self::Tcp(address))
    }
}

/// Who and where this pod is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its identity; the CA must agree.
    pub id: SpiffeId,
    /// Its name.
    pub pod_name: String,
    /// Its address.
    pub pod_ip: IpAddr,
    /// `host:port` of the control plane.
    pub control_address: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Log filter.
    pub log: String,
    /// How long relayed streams may go on after the end was asked for.
    pub drain_deadline: Duration,
    /// Mark of the agent's sockets.
    pub mark: Option<u32>,
}

impl Place {
    /// Reads the environment.
    ///
    /// # Errors
    /// Names every variable that is missing or bad.
    pub fn from_env(env: Env) -> Result<Self, EnvErrors> {
        let pod_name = env.required::<String>(variables::POD_NAME);
        let pod_ip = env.required::<IpAddr>(variables::POD_IP);
        let id = workload_id(&env);
        let control_address = env
            .get(variables::CONTROL_ADDRESS)
            .unwrap_or_else(|| format!("tulle-control.{CONTROL_NAMESPACE}.svc:{}", ports::XDS));
        if split_address(&control_address).is_none() {
            env.reject(
                variables::CONTROL_ADDRESS,
                "expected host:port, such as tulle-control.tulle-system.svc:15012",
            );
        }
        let cluster_domain = env
            .get(variables::CLUSTER_DOMAIN)
            .unwrap_or_else(|| DEFAULT_CLUSTER_DOMAIN.to_owned());
        let log = env.get(variables::LOG).unwrap_or_else(|| "info".to_owned());
        let drain_deadline = env
            .duration(variables::DRAIN_DEADLINE)
            .unwrap_or(Duration::from_secs(25));
        let mark = env.get(variables::MARK_SOCKETS).unwrap_or(false);
        env.finish_with(|| {
            Some(Self {
                id: id?,
                pod_name: pod_name?,
                pod_ip: pod_ip?,
                control_address,
                cluster_domain,
                log,
                drain_deadline,
                mark: mark.then_some(PROXY_MARK),
            })
        })
    }

    /// The `node.id` of a client of this pod, after its kind and a tilde.
    #[must_use]
    pub fn node(&self) -> String {
        let (namespace, domain) = (self.id.namespace(), &self.cluster_domain);
        format!(
            "{}~{}.{namespace}~{namespace}.svc.{domain}",
            self.pod_ip, self.pod_name
        )
    }
}

/// Host (without brackets) and port of `host:port`.
#[must_use]
pub fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    (!host.is_empty()).then_some((host, port.parse().ok()?))
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

    fn parse(flags: &[&str]) -> Result<Args, String> {
        Program::try_parse_from(["agent"].iter().chain(flags))
            .map(|program| program.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_relay_listens_where_no_other_pod_reaches_it_and_nowhere_else() {
        for (address, good) in [
            ("127.0.0.1:15010", true),
            ("127.3.2.1:0", true),
            ("[::1]:15010", true),
            ("unix:/run/agent/xds.sock", true),
            ("unix:xds.sock", false),
            ("0.0.0.0:15010", false),
            ("[::]:15010", false),
            ("10.1.2.3:15010", false),
            ("[::ffff:10.1.2.3]:15010", false),
            ("localhost:15010", false),
            ("15010", false),
        ] {
            let parsed = parse(&["--xds-listen", address]);
            assert_eq!(parsed.is_ok(), good, "{address}: {parsed:?}");
        }
    }

    #[test]
    fn a_bootstrap_needs_a_client_and_a_file() {
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--bootstrap", "envoy", "--bootstrap-file", "/b.json"]).is_ok());
        assert!(parse(&["--bootstrap", "envoy"]).is_err());
        assert!(parse(&["--bootstrap-file", "/b.json"]).is_err());
        assert!(parse(&["--bootstrap", "nginx", "--bootstrap-file", "/b.json"]).is_err());
    }

    #[test]
    fn everything_wrong_with_the_environment_is_said_at_once() {
        let env = Env::from_pairs([
            (variables::POD_IP, "nowhere"),
            (variables::CONTROL_ADDRESS, "control"),
        ]);
        let error = Place::from_env(env).unwrap_err().to_string();
        for name in [
            variables::POD_NAME,
            variables::POD_NAMESPACE,
            variables::POD_IP,
            variables::SERVICE_ACCOUNT,
            variables::CONTROL_ADDRESS,
        ] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }

    #[test]
    fn the_node_is_the_pod() {
        let env = Env::from_pairs([
            (variables::POD_NAME, "web-1"),
            (variables::POD_NAMESPACE, "shop"),
            (variables::POD_IP, "10.1.2.3"),
            (variables::SERVICE_ACCOUNT, "web"),
        ]);
        let place = Place::from_env(env).unwrap();
        assert_eq!(place.node(), "10.1.2.3~web-1.shop~shop.svc.cluster.local");
        assert_eq!(place.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn addresses_split_into_host_and_port() {
        for (address, expected) in [
            ("control.svc:15012", Some(("control.svc", 15012))),
            ("10.0.0.1:1", Some(("10.0.0.1", 1))),
            ("[fd00::1]:15012", Some(("fd00::1", 15012))),
            ("control.svc", None),
            (":15012", None),
            ("control.svc:99999", None),
        ] {
            assert_eq!(split_address(address), expected, "{address}");
        }
    }
}
