//! What happens to a request: forwarding, redirects, answers; headers, timeouts and retries.
//!
//! A timeout is always written (0 means none), because Envoy's default is 15 s. The default retry policy is written too;
//! Tulle's proxy restricts what may have been processed to idempotent methods by itself, foreign clients do not and
//! get only what is safe for every method. A backend that does not exist takes its share and answers 500
//! (`cluster_not_found_response_code`); a rule without any backend that exists is a direct 500.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tulle_runtime::names::UNPROCESSED_HEADER;
use tulle_xds_proto::envoy::config::core::v3::{
    HeaderValue as WireHeader, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use tulle_xds_proto::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use tulle_xds_proto::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, HostRewriteSpecifier, hash_policy,
};
use tulle_xds_proto::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use tulle_xds_proto::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route as WireRoute, RouteAction,
    WeightedCluster, route,
};
use tulle_xds_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use tulle_xds_proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use tulle_xds_proto::pack;

use super::super::ClientKind;
use super::super::filter::{duration, number};
use super::backend_cluster;
use super::matching::{exact, header};
use crate::store::World;
use crate::store::route::{
    Action, BackendTarget, Forward, HeaderChanges, Match, PathMatch, PathRewrite, Redirect, Retry,
    Rule,
};

const RETRIES: u32 = 2;
pub(in super::super) const BACKOFF_BASE: Duration = Duration::from_millis(25);
pub(in super::super) const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Without routes: a cluster of the destination's own.
pub(super) struct Own<'a> {
    /// Its name.
    pub(super) cluster: &'a str,
    /// Whether a client stays with one endpoint.
    pub(super) sticky: bool,
}

/// The methods that a route is for, as far as its retries depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Methods {
    /// All: the client minds by itself which of them are idempotent, or cannot.
    All,
    /// Idempotent ones (RFC 9110, 9.2.2): what may have been processed is tried again too.
    Idempotent,
    /// The others: only what was surely not processed.
    Others,
}

impl Own<'_> {
    /// Everything goes there, with the default retry policy.
    pub(super) fn forward(&self, kind: ClientKind, methods: Methods) -> route::Action {
        route::Action::Route(RouteAction {
            timeout: Some(duration(Duration::ZERO)),
            retry_policy: Some(retry_policy((kind, methods), None, None)),
            hash_policy: by_source(self.sticky),
            cluster_specifier: Some(ClusterSpecifier::Cluster(self.cluster.to_owned())),
            ..RouteAction::default()
        })
    }
}

/// Everything goes to a cluster, and is never tried again.
pub(super) fn once(cluster: &str) -> route::Action {
    route::Action::Route(RouteAction {
        timeout: Some(duration(Duration::ZERO)),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    })
}

/// Of which table a route is.
pub(super) struct Table<'a> {
    pub(super) world: &'a World,
    pub(super) kind: ClientKind,
    /// The port of the Service.
    pub(super) port: u16,
}

impl Table<'_> {
    /// A rule's action and header changes, for one of its matches.
    pub(super) fn route(&self, rule: &Rule, matches: &Match, methods: Methods) -> WireRoute {
        let action = match &rule.action {
            Action::Forward(forward) => self.forward(forward, matches, methods),
            Action::Redirect(redirect) => route::Action::Redirect(self.redirect(redirect, matches)),
        };
        WireRoute {
            action: Some(action),
            request_headers_to_add: added(&rule.request_headers),
            request_headers_to_remove: removed(&rule.request_headers),
            response_headers_to_add: added(&rule.response_headers),
            response_headers_to_remove: removed(&rule.response_headers),
            ..WireRoute::default()
        }
    }

    fn forward(&self, forward: &Forward, matches: &Match, methods: Methods) -> route::Action {
        let Some(backends) = Backends::of(self.world, forward) else {
            return route::Action::DirectResponse(DirectResponseAction {
                status: 500,
                ..DirectResponseAction::default()
            });
        };
        let mut action = RouteAction {
            cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError
                .into(),
            timeout: Some(duration(forward.timeout.unwrap_or_default())),
            retry_policy: Some(retry_policy(
                (self.kind, methods),
                forward.retry.as_ref(),
                forward.backend_timeout,
            )),
            hash_policy: by_source(backends.sticky),
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: backends.clusters,
                ..WeightedCluster::default()
            })),
            host_rewrite_specifier: forward
                .host_rewrite
                .as_ref()
                .map(|host| HostRewriteSpecifier::HostRewriteLiteral(text(host))),
            ..RouteAction::default()
        };
        match forward
            .path_rewrite
            .as_ref()
            .map(|rewrite| Rewrite::of(rewrite, self.kind, matches))
        {
            Some(Rewrite::Prefix(prefix)) => action.prefix_rewrite = prefix,
            Some(Rewrite::Regex(regex)) => action.regex_rewrite = Some(regex),
            None => {}
        }
        route::Action::Route(action)
    }

    fn redirect(&self, redirect: &Redirect, matches: &Match) -> RedirectAction {
        let code = match redirect.status.as_u16() {
            301 => RedirectResponseCode::MovedPermanently,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::Found,
        };
        let path = redirect.path.as_ref().map(|rewrite| {
            match (rewrite, Rewrite::of(rewrite, self.kind, matches)) {
                (PathRewrite::Full(path), _) => {
                    PathRewriteSpecifier::PathRedirect(path.to_string())
                }
                (_, Rewrite::Prefix(prefix)) => PathRewriteSpecifier::PrefixRewrite(prefix),
                (_, Rewrite::Regex(regex)) => PathRewriteSpecifier::RegexRewrite(regex),
            }
        });
        RedirectAction {
            host_redirect: redirect.host.as_deref().unwrap_or_default().to_owned(),
            port_redirect: self.redirect_port(redirect),
            response_code: code.into(),
            scheme_rewrite_specifier: redirect
                .scheme
                .as_ref()
                .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_string())),
            path_rewrite_specifier: path,
            ..RedirectAction::default()
        }
    }

    /// Our proxy knows which port is meant where none is named. Envoy names none with another host, and the request's with
    /// the same one, whatever the scheme.
    fn redirect_port(&self, redirect: &Redirect) -> u32 {
        let port = match (redirect.port, &redirect.scheme, &redirect.host) {
            (Some(port), ..) => port,
            (None, None, Some(_)) if self.kind == ClientKind::Envoy && self.port != 80 => self.port,
            (None, Some(scheme), None) if self.kind == ClientKind::Envoy => {
                if **scheme == *"https" { 443 } else { 80 }
            }
            _ => 0,
        };
        port.into()
    }
}

/// The backends of a rule, on the wire.
struct Backends {
    clusters: Vec<ClusterWeight>,
    /// Whether a client stays with one endpoint.
    sticky: bool,
}

impl Backends {
    /// `None` if nothing that exists gets a share.
    fn of(world: &World, forward: &Forward) -> Option<Self> {
        let mut clusters = Vec::new();
        let mut any_exists = false;
        let mut sticky = false;
        for backend in &forward.backends {
            let (name, exists) = match &backend.target {
                BackendTarget::Service(key, port) => {
                    sticky |= world
                        .service(key)
                        .is_some_and(|service| service.client_ip_affinity.is_some());
                    backend_cluster(world, key, *port)
                }
                BackendTarget::Invalid => ("invalid".to_owned(), false),
            };
            // What does not exist and gets nothing is not worth a name that clients would ask for.
            if !exists && backend.weight == 0 {
                continue;
            }
            any_exists |= exists && backend.weight > 0;
            clusters.push(ClusterWeight {
                name,
                weight: number(backend.weight),
                request_headers_to_add: added(&backend.request_headers),
                request_headers_to_remove: removed(&backend.request_headers),
                response_headers_to_add: added(&backend.response_headers),
                response_headers_to_remove: removed(&backend.response_headers),
                ..ClusterWeight::default()
            });
        }
        any_exists.then_some(Self { clusters, sticky })
    }
}

/// How a path rewrite is written.
enum Rewrite {
    Prefix(String),
    Regex(RegexMatchAndSubstitute),
}

impl Rewrite {
    /// A full path replaces all of it. A prefix is replaced as written for our proxy, which minds segments; Envoy swaps
    /// bytes, so the slashes at the seam are taken care of here.
    fn of(rewrite: &PathRewrite, kind: ClientKind, matches: &Match) -> Self {
        match (rewrite, &matches.path) {
            (PathRewrite::Full(path), _) => Self::Regex(substitute("^/.*$".to_owned(), path)),
            (PathRewrite::Prefix(prefix), PathMatch::Prefix(matched))
                if kind == ClientKind::Envoy =>
            {
                let prefix = prefix.trim_end_matches('/');
                match (prefix, &**matched) {
                    ("", matched) => {
                        Self::Regex(substitute(format!("^{}/*", escape(matched)), "/"))
                    }
                    (prefix, "/") => Self::Prefix(format!("{prefix}/")),
                    (prefix, _) => Self::Prefix(prefix.to_owned()),
                }
            }
            // On the wire an empty prefix is no rewrite at all.
            (PathRewrite::Prefix(prefix), _) if prefix.is_empty() => Self::Prefix("/".to_owned()),
            (PathRewrite::Prefix(prefix), _) => Self::Prefix(prefix.to_string()),
        }
    }
}

/// Escapes a path for a regular expression.
fn escape(path: &str) -> String {
    path.chars()
        .fold(String::with_capacity(path.len()), |mut escaped, char| {
            if !char.is_ascii_alphanumeric() && char != '/' && char.is_ascii() {
                escaped.push('\\');
            }
            escaped.push(char);
            escaped
        })
}

fn substitute(regex: String, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex,
            ..RegexMatcher::default()
        }),
        substitution: substitution.replace('\\', r"\\"),
    }
}

fn retry_policy(
    (kind, methods): (ClientKind, Methods),
    retry: Option<&Retry>,
    per_try_timeout: Option<Duration>,
) -> RetryPolicy {
    let codes = retry.map_or(&[][..], |retry| &retry.codes);
    let base = retry
        .and_then(|retry| retry.backoff)
        .unwrap_or(BACKOFF_BASE);
    let policy = RetryPolicy {
        retry_on: retry_on(kind, methods, retry),
        num_retries: number(retry.map_or(RETRIES, |retry| retry.attempts)),
        per_try_timeout: per_try_timeout
            .filter(|timeout| !timeout.is_zero())
            .map(duration),
        retriable_status_codes: codes.iter().map(|code| u32::from(code.as_u16())).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(base)),
            max_interval: Some(duration(BACKOFF_MAX.max(base * 10))),
        }),
        ..RetryPolicy::default()
    };
    match kind {
        ClientKind::Envoy => elsewhere(policy),
        ClientKind::Tulle | ClientKind::Grpc => policy,
    }
}

fn retry_on(kind: ClientKind, methods: Methods, retry: Option<&Retry>) -> String {
    let answers = match retry {
        None => ",gateway-error",
        Some(retry) if retry.codes.is_empty() => "",
        Some(_) => ",retriable-status-codes",
    };
    match (kind, methods, retry) {
        (ClientKind::Envoy, Methods::Idempotent, _) => {
            format!("connect-failure,refused-stream,retriable-headers,reset{answers}")
        }
        (ClientKind::Envoy, ..) => {
            "connect-failure,refused-stream,retriable-headers,reset-before-request".to_owned()
        }
        (ClientKind::Tulle | ClientKind::Grpc, ..) => {
            format!("connect-failure,refused-stream,reset{answers}")
        }
    }
}

/// What our proxy does by itself: it prefers another endpoint for a retry, and knows the mark "not processed".
fn elsewhere(mut policy: RetryPolicy) -> RetryPolicy {
    policy.retry_host_predicate = vec![RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(
            &PreviousHostsPredicate {},
        ))),
    }];
    // An endpoint that fails at once is the least loaded one: of two it comes up three times in four.
    policy.host_selection_retry_max_attempts = 32;
    policy.retriable_headers = vec![header(UNPROCESSED_HEADER, exact("1"))];
    policy
}

fn by_source(sticky: bool) -> Vec<HashPolicy> {
    let source =
        hash_policy::PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties {
            source_ip: true,
        });
    sticky
        .then_some(HashPolicy {
            policy_specifier: Some(source),
            ..HashPolicy::default()
        })
        .into_iter()
        .collect()
}

/// Headers that are set and added. A per cent sign is doubled: a single one begins a command for Envoy.
fn added(changes: &HeaderChanges) -> Vec<HeaderValueOption> {
    let option =
        |(name, value): &(HeaderName, HeaderValue), action: HeaderAppendAction| HeaderValueOption {
            header: Some(WireHeader {
                key: name.to_string(),
                value: text(value).replace('%', "%%"),
                ..WireHeader::default()
            }),
            append_action: action.into(),
            keep_empty_value: true,
            ..HeaderValueOption::default()
        };
    let set = changes
        .set
        .iter()
        .map(|it| option(it, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes
        .add
        .iter()
        .map(|it| option(it, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

fn removed(changes: &HeaderChanges) -> Vec<String> {
    changes.remove.iter().map(HeaderName::to_string).collect()
}

/// Values come from manifests, which are text.
fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
