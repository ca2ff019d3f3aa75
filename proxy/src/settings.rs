//! What the operator decided when the sidecar was started; it never changes afterwards.
//!
//! Everything is read from the environment and checked at once ([`Startup::from_env`]), so that a bad pod spec is
//! reported whole. The data path sees only [`Settings`].

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use tulle_identity::ca_client::ControlName;
use tulle_identity::{SpiffeId, workload_id};
use tulle_runtime::env::{Env, EnvErrors};
use tulle_runtime::limits::Limits;
pub use tulle_runtime::limits::{Bounds, Http2, Patience};
use tulle_runtime::names::{
    CONTROL_DNS_NAME, CONTROL_NAMESPACE, DEFAULT_CLUSTER_DOMAIN, PROXY_MARK, ports, variables,
};

use crate::merged::Source;
use crate::probes::Probes;

/// Settings of the data path.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of workers.
    pub workers: usize,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// How long peers may do nothing.
    pub patience: Patience,
    /// How much there may be at a time.
    pub bounds: Bounds,
    /// Limits on HTTP/2.
    pub http2: Http2,
    /// Mark for the proxy's own sockets, where it cannot have a uid of its own.
    pub socket_mark: Option<u32>,
    /// Whether connections to destinations that the control plane did not answer for pass through unencrypted.
    pub passthrough_undiscovered: bool,
    /// Whether apps get what clients outside the mesh say of how they were reached: there is an ingress without a sidecar.
    pub keep_ingress_headers: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            drain_deadline: Duration::from_secs(25),
            patience: Patience::default(),
            bounds: Bounds::default(),
            http2: Http2::default(),
            socket_mark: None,
            passthrough_undiscovered: false,
            keep_ingress_headers: false,
        }
    }
}

/// Everything that a sidecar is told at its start.
#[derive(Clone, Debug)]
pub struct Startup {
    /// What the data path needs of it.
    pub settings: Settings,
    /// Who this pod is; the CA must agree.
    pub id: SpiffeId,
    /// Name of the pod.
    pub pod_name: String,
    /// Address of the pod.
    pub pod_ip: IpAddr,
    /// `host:port` of the control plane.
    pub control_address: String,
    /// Where the config comes from, if not from there.
    pub foreign: Option<ForeignControl>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Log filter.
    pub log: String,
    /// Whether requests and connections are logged.
    pub access_log: bool,
    /// The app's own probes.
    pub probes: Probes,
    /// Where the app's own metrics are, if they go behind the sidecar's.
    pub app_metrics: Option<Source>,
    /// Whether everything is subscribed to, and not only what the app talks to.
    pub wildcard: bool,
    /// How long it goes on after it was told to end.
    pub outlive: Outlive,
}

/// How long a sidecar goes on after it was told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outlive {
    /// Not at all: the app has ended before, as before a native sidecar.
    #[default]
    No,
    /// Until nobody else listens in the pod: that is how the end of a single container shows.
    Listeners,
    /// Until the deadline is near: of several containers one may listen, and another go on working.
    Deadline,
}

impl FromStr for Outlive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "listeners" => Ok(Self::Listeners),
            "deadline" => Ok(Self::Deadline),
            other => Err(format!("{other:?} is neither listeners nor deadline")),
        }
    }
}

/// A control plane of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignControl {
    /// Its `host:port`.
    pub address: String,
    /// Who it must prove to be.
    pub name: ControlName,
}

impl Startup {
    /// Reads the sidecar's variables.
    ///
    /// # Errors
    ///
    /// Names every variable that is missing or bad.
    pub fn from_env(env: Env) -> Result<Self, EnvErrors> {
        let choice = |name, first, second| choose(&env, name, first, second);
        let pod_name = env.required::<String>(variables::POD_NAME);
        let pod_ip = env.required::<IpAddr>(variables::POD_IP);
        let id = workload_id(&env);
        let settings = settings(&env);
        let access_log = choice(variables::ACCESS_LOG, "json", "off");
        let probes = or(&env, variables::APP_PROBES, Probes::default);
        let app_metrics = env.get(variables::APP_METRICS);
        let outlive = or(&env, variables::OUTLIVE_APP, Outlive::default);
        let foreign = foreign(&env);
        let on_demand = choice(variables::DISCOVERY, "on-demand", "wildcard");
        // What a foreign control plane names its listeners nobody could ask for.
        let wildcard = !on_demand || foreign.is_some() && env.text(variables::DISCOVERY).is_none();
        let control_address = or(&env, variables::CONTROL_ADDRESS, || {
            format!("tulle-control.{CONTROL_NAMESPACE}.svc:{}", ports::XDS)
        });
        let cluster_domain = or(&env, variables::CLUSTER_DOMAIN, || {
            DEFAULT_CLUSTER_DOMAIN.to_owned()
        });
        let log = or(&env, variables::LOG, || "info".to_owned());
        env.finish_with(|| {
            Some(Self {
                settings,
                id: id?,
                pod_name: pod_name?,
                pod_ip: pod_ip?,
                control_address,
                foreign,
                cluster_domain,
                log,
                access_log,
                probes,
                app_metrics,
                wildcard,
                outlive,
            })
        })
    }
}

fn foreign(env: &Env) -> Option<ForeignControl> {
    let address = env.text(variables::XDS_ADDRESS);
    let name = env.get(variables::XDS_NAME);
    if address.is_none() && name.is_some() {
        let remedy = "it has no meaning without TULLE_XDS_ADDRESS";
        env.reject(variables::XDS_NAME, remedy);
    }
    Some(ForeignControl {
        address: address?.to_owned(),
        name: name.unwrap_or_else(|| ControlName::Dns(CONTROL_DNS_NAME.to_owned())),
    })
}

fn settings(env: &Env) -> Settings {
    let default = Settings::default();
    let workers = or(env, variables::WORKERS, || default.workers);
    if workers == 0 {
        env.reject(
            variables::WORKERS,
            "at least one worker is needed; leave it out for one",
        );
    }
    let limits = Limits::from_env(env);
    Settings {
        workers,
        drain_deadline: env
            .duration(variables::DRAIN_DEADLINE)
            .unwrap_or(default.drain_deadline),
        patience: limits.patience,
        bounds: limits.bounds,
        http2: limits.http2,
        socket_mark: or(env, variables::MARK_SOCKETS, || false).then_some(PROXY_MARK),
        passthrough_undiscovered: !choose(env, variables::UNDISCOVERED, "refuse", "passthrough"),
        keep_ingress_headers: !choose(env, variables::INGRESS_HEADERS, "strip", "keep"),
    }
}

/// True for the first word, which is the default, false for the second.
fn choose(env: &Env, name: &str, first: &str, second: &str) -> bool {
    match env.text(name) {
        None => true,
        Some(word) if word == first => true,
        Some(word) if word == second => false,
        Some(_) => {
            env.reject(name, format!("use `{first}` or `{second}`"));
            true
        }
    }
}

fn or<T: FromStr<Err: Display>>(env: &Env, name: &str, default: impl FnOnce() -> T) -> T {
    env.get(name).unwrap_or_else(default)
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 4] = [
        (variables::POD_NAME, "web-1"),
        (variables::POD_NAMESPACE, "shop"),
        (variables::POD_IP, "10.1.2.3"),
        (variables::SERVICE_ACCOUNT, "web"),
    ];

    #[test]
    fn a_pod_that_says_who_it_is_gets_defaults_for_the_rest() {
        let startup = Startup::from_env(Env::from_pairs(REQUIRED)).unwrap();
        assert_eq!(startup.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(
            startup.control_address,
            "tulle-control.tulle-system.svc:15012"
        );
        assert_eq!(startup.settings.workers, 1);
        assert_eq!(startup.settings.socket_mark, None);
        assert!(!startup.settings.keep_ingress_headers && startup.outlive == Outlive::No);
        assert!(
            startup.access_log && !startup.wildcard && !startup.settings.passthrough_undiscovered
        );
    }

    #[test]
    fn every_choice_can_be_made() {
        let chosen = [
            (variables::MARK_SOCKETS, "true"),
            (variables::ACCESS_LOG, "off"),
            (variables::DISCOVERY, "wildcard"),
            (variables::UNDISCOVERED, "passthrough"),
            (variables::INGRESS_HEADERS, "keep"),
            (variables::DRAIN_DEADLINE, "3s"),
            (variables::OUTLIVE_APP, "deadline"),
            (variables::REQUEST_HEAD_TIMEOUT, "7s"),
        ];
        let startup =
            Startup::from_env(Env::from_pairs(REQUIRED.into_iter().chain(chosen))).unwrap();
        assert_eq!(startup.settings.socket_mark, Some(PROXY_MARK));
        assert_eq!(startup.settings.drain_deadline, Duration::from_secs(3));
        assert!(startup.settings.keep_ingress_headers && startup.outlive == Outlive::Deadline);
        assert_eq!(startup.settings.patience.head, Duration::from_secs(7));
        assert!(
            !startup.access_log && startup.wildcard && startup.settings.passthrough_undiscovered
        );
    }

    #[test]
    fn a_foreign_control_plane_is_followed_by_wildcard_unless_the_operator_says_otherwise() {
        let start = |chosen: &[(&str, &str)]| {
            Startup::from_env(Env::from_pairs(
                REQUIRED.into_iter().chain(chosen.iter().copied()),
            ))
        };
        let address = (variables::XDS_ADDRESS, "config.infra:18000");
        let startup = start(&[address]).unwrap();
        let foreign = startup.foreign.unwrap();
        assert_eq!(foreign.address, "config.infra:18000");
        assert_eq!(foreign.name, ControlName::Dns(CONTROL_DNS_NAME.to_owned()));
        assert!(startup.wildcard);
        // Certificates still come from our own.
        let own = "tulle-control.tulle-system.svc:15012";
        assert_eq!(startup.control_address, own);

        let id = "spiffe://cluster.local/ns/infra/sa/config";
        let name = (variables::XDS_NAME, id);
        let on_demand = (variables::DISCOVERY, "on-demand");
        let startup = start(&[address, name, on_demand]).unwrap();
        let foreign = startup.foreign.unwrap();
        assert_eq!(foreign.name, ControlName::Spiffe(id.parse().unwrap()));
        assert!(!startup.wildcard);

        for bad in ["spiffe://cluster.local/config", "a b"] {
            let error = start(&[address, (variables::XDS_NAME, bad)]).unwrap_err();
            assert!(error.to_string().contains(variables::XDS_NAME), "{error}");
        }
        let error = start(&[name]).unwrap_err().to_string();
        assert!(error.contains("TULLE_XDS_ADDRESS"), "{error}");
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once() {
        let bad = [
            (variables::POD_IP, "here"),
            (variables::TRUST_DOMAIN, "a b"),
            (variables::WORKERS, "0"),
            (variables::DISCOVERY, "sometimes"),
        ];
        let error = Startup::from_env(Env::from_pairs(bad))
            .unwrap_err()
            .to_string();
        for name in [
            variables::POD_NAME,
            variables::POD_NAMESPACE,
            variables::POD_IP,
            variables::SERVICE_ACCOUNT,
            variables::TRUST_DOMAIN,
            variables::WORKERS,
            variables::DISCOVERY,
        ] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }

    #[test]
    fn a_bad_namespace_is_not_blamed_on_the_service_account() {
        let bad = REQUIRED
            .into_iter()
            .chain([(variables::POD_NAMESPACE, "Not A Namespace")]);
        let error = Startup::from_env(Env::from_pairs(bad))
            .unwrap_err()
            .to_string();
        assert!(error.contains(variables::POD_NAMESPACE), "{error}");
        assert!(!error.contains(variables::SERVICE_ACCOUNT), "{error}");
    }
}
