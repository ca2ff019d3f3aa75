//! The command line of the injector. What is wrong is said by option, value and remedy, before anything begins.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tulle_identity::TrustDomain;
use tulle_runtime::env::parse_duration;
use tulle_runtime::names::{self, INJECTOR, files, ports, variables};
use tulle_runtime::trace;

use super::limits::LimitArgs;
use crate::options::{host_and_port, log_filter};
use crate::{HookKey, InjectorConfig, Located, Resources, Revision, Selector, quantity};

/// Settings of the injector.
#[derive(Clone, Debug, clap::Args)]
#[command(next_line_help = true)]
pub struct Args {
    /// Revision that this injector serves: namespaces and pods with the label tulle.dev/rev of this value; `default` serves
    /// those that have none, too.
    #[arg(long, value_name = "NAME", default_value_t = Revision::default())]
    pub revision: Revision,

    /// Address for the API server: reviews over HTTPS, POST /inject.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, ports::WEBHOOK)))]
    pub webhook_address: SocketAddr,

    /// Address for operators, kubelet and Prometheus: GET /ready and /metrics.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::CONTROL_ADMIN)))]
    pub admin_address: SocketAddr,

    /// Control plane of this injector and of the sidecars that it adds, as host:port; that of its revision if not said.
    #[arg(long, value_name = "HOST:PORT", env = variables::CONTROL_ADDRESS, value_parser = address)]
    pub control_address: Option<String>,

    /// Trust domain of the mesh: the first part of every identity.
    #[arg(long, value_name = "NAME", env = variables::TRUST_DOMAIN, default_value = names::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,

    /// DNS domain of the cluster.
    #[arg(long, value_name = "NAME", env = variables::CLUSTER_DOMAIN, default_value = names::DEFAULT_CLUSTER_DOMAIN, value_parser = named)]
    pub cluster_domain: String,

    /// Service account of this injector; `tulle-injector`, with its revision, if not said.
    #[arg(long, value_name = "NAME", env = variables::SERVICE_ACCOUNT)]
    pub service_account: Option<String>,

    /// Projected token of that account for the CA, read anew for each certificate.
    #[arg(long, value_name = "FILE", default_value = files::TOKEN)]
    pub token_file: PathBuf,

    /// Trust bundle of the mesh, followed live.
    #[arg(long, value_name = "FILE", default_value = files::CA_BUNDLE)]
    pub bundle_file: PathBuf,

    /// How long the certificate of the webhook is to live; it is renewed at half of it.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub certificate_ttl: Duration,

    /// How often pods are looked for that run without the sidecar that they should have.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval)]
    pub reconcile_interval: Duration,

    /// Log filter of the injector, such as `info` or `info,tulle_injector=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = trace::filter, env = variables::LOG)]
    pub log: String,

    /// What sidecars are like.
    #[command(flatten)]
    pub sidecar: SidecarArgs,

    /// What clients may make grow.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// What sidecars are like, unless a pod says otherwise by annotation.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sidecars")]
pub struct SidecarArgs {
    /// Image of the sidecar.
    #[arg(long, value_name = "IMAGE", default_value = names::containers::PROXY_IMAGE, value_parser = named)]
    pub image: String,

    /// When the kubelet pulls it.
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: PullPolicy,

    /// Secret that pods get to pull it with, of their own namespace; may be said more than once. A pod in a file that names none gets
    /// these alone: Kubernetes adds those of its service account only to pods without any, so name them, too.
    #[arg(long, value_name = "NAME", value_parser = named)]
    pub image_pull_secret: Vec<String>,

    /// Log filter of sidecars.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = proxy_log)]
    pub proxy_log: String,

    /// Access log of sidecars.
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub proxy_access_log: AccessLog,

    /// Ordinary containers instead of native sidecars, for nodes before Kubernetes 1.29.
    #[arg(long)]
    pub classic_sidecars: bool,

    /// Leave the kubelet's probes and hooks as they are; under STRICT mTLS they then fail.
    #[arg(long)]
    pub keep_probes: bool,

    /// Leave annotations for Prometheus as they are, so that it goes to apps itself; under STRICT mTLS it then fails.
    #[arg(long)]
    pub keep_metrics: bool,

    /// How long a sidecar may drain; five seconds less than its pod's grace period if not said, two of an ordinary container.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub proxy_drain_deadline: Option<Duration>,

    /// Data-path workers of each sidecar.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = workers)]
    pub proxy_workers: usize,

    /// Processor time that sidecars ask for.
    #[arg(long, value_name = "QUANTITY", default_value_t = Resources::default().cpu_request, value_parser = cpu)]
    pub proxy_cpu_request: String,

    /// Processor time that sidecars may use; no limit if not said.
    #[arg(long, value_name = "QUANTITY", value_parser = cpu)]
    pub proxy_cpu_limit: Option<String>,

    /// Memory that sidecars ask for.
    #[arg(long, value_name = "QUANTITY", default_value_t = Resources::default().memory_request, value_parser = memory)]
    pub proxy_memory_request: String,

    /// Memory that sidecars may use.
    #[arg(long, value_name = "QUANTITY", default_value = "256Mi", value_parser = memory)]
    pub proxy_memory_limit: String,

    /// Label selector in JSON, such as {"matchLabels":{"app":"build"}}: pods that are left as they are unless their own label
    /// asks for a sidecar. May be repeated.
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    pub never_inject: Vec<Selector>,

    /// Label selector in JSON: pods that get a sidecar also where their namespace asks for none. May be repeated. The webhook's
    /// configuration has to select them, too, as it does for the value injector.alwaysInject of an installation.
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    pub always_inject: Vec<Selector>,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// If the node does not have it.
    IfNotPresent,
    /// It must be there.
    Never,
}

/// Where requests and connections are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// On standard output.
    Json,
    /// Nowhere.
    Off,
}

impl Args {
    /// `host:port` of the control plane.
    #[must_use]
    pub fn control_address(&self) -> String {
        let said = self.control_address.clone();
        said.unwrap_or_else(|| self.revision.control_address(&self.cluster_domain))
    }

    /// Service account of this injector.
    #[must_use]
    pub fn service_account(&self) -> String {
        let said = self.service_account.clone();
        said.unwrap_or_else(|| self.revision.of(INJECTOR))
    }

    /// What is injected.
    #[must_use]
    pub fn config(&self) -> InjectorConfig {
        let sidecar = &self.sidecar;
        let policy = sidecar.image_pull_policy.to_possible_value();
        InjectorConfig {
            revision: self.revision.clone(),
            image: sidecar.image.clone(),
            image_pull_policy: policy
                .map_or_else(String::new, |policy| policy.get_name().to_owned()),
            control_address: self.control_address(),
            control_at: Located::default(),
            trust_domain: self.trust_domain.as_str().to_owned(),
            cluster_domain: self.cluster_domain.clone(),
            log: sidecar.proxy_log.clone(),
            access_log: sidecar.proxy_access_log == AccessLog::Json,
            native_sidecar: !sidecar.classic_sidecars,
            mark_sockets: false,
            rewrite_probes: !sidecar.keep_probes,
            hook_key: HookKey::default(),
            merge_metrics: !sidecar.keep_metrics,
            image_pull_secrets: sidecar.image_pull_secret.clone(),
            start_hook: true,
            drain_deadline: sidecar.proxy_drain_deadline,
            workers: sidecar.proxy_workers,
            resources: Resources {
                cpu_request: sidecar.proxy_cpu_request.clone(),
                memory_request: sidecar.proxy_memory_request.clone(),
                cpu_limit: sidecar.proxy_cpu_limit.clone(),
                memory_limit: Some(sidecar.proxy_memory_limit.clone()),
            },
            never: sidecar.never_inject.clone(),
            always: sidecar.always_inject.clone(),
        }
    }
}

fn address(text: &str) -> Result<String, String> {
    host_and_port("control-address", text).map_err(|_| {
        "it is not a host and a port; write them with a colon between, such as `tulle-control.tulle-system.svc:15012`"
            .to_owned()
    })
}

/// Something without blanks.
fn named(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "it is empty, or has blanks; remove them, or the option for the default".to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn proxy_log(text: &str) -> Result<String, String> {
    log_filter("proxy-log", text).map_err(|_| {
        "it is not a log filter; write off, error, warn, info, debug or trace, alone or for a target: \
         `info,tulle_proxy=debug`"
            .to_owned()
    })
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err("write a number from 1 to 64".to_owned()),
    }
}

fn cpu(text: &str) -> Result<String, String> {
    match quantity::cpu(text) {
        Some(1..) => Ok(text.to_owned()),
        _ => Err(
            "it is not a quantity; write a number of processors, or of thousandths of one, such as `0.5` or `250m`"
                .to_owned(),
        ),
    }
}

fn memory(text: &str) -> Result<String, String> {
    match quantity::memory(text) {
        Some(bytes) if bytes >= 16 << 20 => Ok(text.to_owned()),
        Some(_) => Err("it is too little for a sidecar; write at least 16Mi".to_owned()),
        None => Err("it is not a quantity; write bytes with a unit, such as `64Mi`".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval < Duration::from_secs(1) => {
            Err("the API server would have much to do; give at least 1s".to_owned())
        }
        interval => Ok(interval),
    }
}

fn selector(text: &str) -> Result<Selector, String> {
    let selector: LabelSelector = serde_json::from_str(text).map_err(|error| {
        format!("it is not a label selector in JSON ({error}); write one such as {{\"matchLabels\":{{\"app\":\"build\"}}}}")
    })?;
    Selector::try_from(selector).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, String> {
        let words = ["injector"].iter().chain(words);
        match Program::try_parse_from(words) {
            Ok(program) => Ok(program.args),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_option_is_documented_and_none_contradicts_another() {
        Program::command().debug_assert();
        for option in Program::command().get_arguments() {
            assert!(option.get_help().is_some(), "{option}");
        }
    }

    #[test]
    fn without_options_sidecars_are_as_the_library_has_them() {
        assert_eq!(
            parse(&[]).expect("defaults").config(),
            InjectorConfig::default()
        );
    }

    #[test]
    fn a_revision_has_its_own_control_plane_and_account_unless_others_are_named() {
        let args = parse(&["--revision", "canary"]).expect("good");
        assert_eq!(
            args.config().control_address,
            "tulle-control-canary.tulle-system.svc.cluster.local.:15012"
        );
        assert_eq!(args.service_account(), "tulle-injector-canary");
        let words = [
            "--revision",
            "canary",
            "--control-address",
            "h:1",
            "--service-account",
            "s",
        ];
        let args = parse(&words).expect("good");
        assert_eq!(args.config().control_address, "h:1");
        assert_eq!(args.service_account(), "s");
    }

    #[test]
    fn what_is_said_of_sidecars_becomes_theirs() {
        let selector = r#"{"matchLabels":{"app":"build"}}"#;
        let config = parse(&[
            "--image=i",
            "--image-pull-policy=Never",
            "--image-pull-secret=a",
            "--image-pull-secret=b",
            "--proxy-log=warn",
            "--proxy-access-log=off",
            "--classic-sidecars",
            "--keep-probes",
            "--keep-metrics",
            "--proxy-drain-deadline=7s",
            "--proxy-workers=2",
            "--proxy-cpu-limit=2",
            "--proxy-memory-limit=1Gi",
            "--never-inject",
            selector,
        ])
        .expect("good")
        .config();
        let said = (
            config.image.as_str(),
            config.image_pull_policy.as_str(),
            config.log.as_str(),
            config.access_log,
            config.native_sidecar,
            config.rewrite_probes,
            config.merge_metrics,
            config.drain_deadline,
            config.workers,
            config.never.len(),
        );
        let expected = (
            "i",
            "Never",
            "warn",
            false,
            false,
            false,
            false,
            Some(Duration::from_secs(7)),
            2,
            1,
        );
        assert_eq!(said, expected);
        assert_eq!(config.image_pull_secrets, ["a", "b"]);
        assert_eq!(config.resources.cpu_limit.as_deref(), Some("2"));
        assert_eq!(config.resources.memory_limit.as_deref(), Some("1Gi"));
    }

    #[test]
    fn a_bad_value_is_refused_by_option_value_and_remedy() {
        for (option, value, remedy) in [
            ("--revision", "A b", "write lower-case letters"),
            (
                "--control-address",
                "host",
                "write them with a colon between",
            ),
            ("--trust-domain", "a/b", ""),
            ("--image", "a b", "remove them"),
            ("--image-pull-secret", "a b", "remove them"),
            ("--image-pull-policy", "Sometimes", "IfNotPresent"),
            ("--proxy-log", "loud", "write off, error"),
            ("--proxy-access-log", "xml", "off"),
            ("--proxy-drain-deadline", "soon", ""),
            ("--proxy-workers", "0", "write a number from 1"),
            (
                "--proxy-cpu-request",
                "much",
                "write a number of processors",
            ),
            ("--proxy-memory-limit", "1Ki", "at least 16Mi"),
            ("--never-inject", "app=build", "write one such as"),
            ("--always-inject", "{}", "name a label"),
            ("--reconcile-interval", "1ms", "at least 1s"),
            ("--max-reviews", "0", "at least 1"),
            ("--max-request-bytes", "1000", "at least"),
        ] {
            let error = parse(&[option, value]).expect_err(option);
            for part in [option, value, remedy] {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
    }
}
