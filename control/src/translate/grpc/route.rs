//! Route tables, as gRPC reads them: matches of paths and headers, weights, a deadline and retries by status.
//!
//! Every request of gRPC is a POST without a query, so routes for others are left out. A prefix that minds segments is two
//! routes. Retries are written only where a route asks for them, and by the status that an HTTP code means in gRPC:
//! what was surely not processed gRPC repeats by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use tulle_xds_proto::envoy::config::route::v3::retry_policy::RetryBackOff;
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy, MaxStreamDuration, hash_policy,
};
use tulle_xds_proto::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use tulle_xds_proto::envoy::config::route::v3::{
    RetryPolicy, Route as WireRoute, RouteAction, RouteConfiguration, RouteMatch, WeightedCluster,
    route, route_match,
};

use super::super::ProxyView;
use super::super::filter::{duration, number};
use super::super::route as tables;
use super::NOWHERE;
use crate::store::World;
use crate::store::route::{Action, BackendTarget, Forward, Match, PathMatch, Retry};
use crate::store::service::{Service, ServicePort};
use crate::translate::attachment;

/// As the client's own key for a channel.
const CHANNEL: &str = "io.grpc.channel_id";
/// gRPC makes at most this many retries of a call.
const MOST_RETRIES: u32 = 4;

/// The table of a port of a Service.
pub(in super::super) fn table(
    world: &World,
    view: &ProxyView,
    name: &str,
    service: &Service,
    port: &ServicePort,
) -> RouteConfiguration {
    let routes = attachment::requests(world, view, &service.key, port);
    if routes.is_empty() {
        let own = ClusterSpecifier::Cluster(name.to_owned());
        let sticky = service.client_ip_affinity.is_some();
        let everything = wire(
            String::new(),
            tables::matching::everything(),
            action(own, sticky),
        );
        return tables::configuration(name, vec![everything]);
    }
    let routes = tables::ordered(&routes)
        .into_iter()
        .flat_map(|(route, rule, it)| {
            let action = match &rule.action {
                Action::Forward(forward) => forward_to(world, forward),
                Action::Redirect(_) => nowhere(),
            };
            matches(it)
                .into_iter()
                .map(move |it| wire(tables::rule_name(route, rule), it, action.clone()))
        })
        .collect();
    tables::configuration(name, routes)
}

fn wire(name: String, matches: RouteMatch, action: RouteAction) -> WireRoute {
    WireRoute {
        name,
        r#match: Some(matches),
        action: Some(route::Action::Route(action)),
        ..WireRoute::default()
    }
}

/// What a request must look like; nothing if no request ever does.
fn matches(it: &Match) -> Vec<RouteMatch> {
    let is_post = it
        .method
        .as_ref()
        .is_none_or(|method| *method == Method::POST);
    if !is_post || !it.query.is_empty() {
        return Vec::new();
    }
    let all = tables::matching::matches(&Match {
        method: None,
        ..it.clone()
    });
    let at = |path| RouteMatch {
        path_specifier: Some(path),
        ..all.clone()
    };
    match &it.path {
        PathMatch::Prefix(prefix) if &**prefix != "/" => {
            let prefix = prefix.trim_end_matches('/');
            vec![
                at(route_match::PathSpecifier::Path(prefix.to_owned())),
                at(route_match::PathSpecifier::Prefix(format!("{prefix}/"))),
            ]
        }
        _ => vec![all],
    }
}

fn forward_to(world: &World, forward: &Forward) -> RouteAction {
    // Several that do not exist are one.
    let mut weights: BTreeMap<String, u32> = BTreeMap::new();
    let mut sticky = false;
    for backend in forward.backends.iter().filter(|it| it.weight > 0) {
        let cluster = match &backend.target {
            BackendTarget::Service(key, port) => {
                sticky |= world
                    .service(key)
                    .is_some_and(|service| service.client_ip_affinity.is_some());
                let (name, exists) = tables::backend_cluster(world, key, *port);
                exists.then_some(name)
            }
            BackendTarget::Invalid => None,
        };
        let weight = weights
            .entry(cluster.unwrap_or_else(|| NOWHERE.to_owned()))
            .or_default();
        *weight = weight.saturating_add(backend.weight);
    }
    if weights.is_empty() {
        return nowhere();
    }
    let clusters = weights.into_iter().map(|(name, weight)| ClusterWeight {
        name,
        weight: number(weight),
        ..ClusterWeight::default()
    });
    let clusters = ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
        ..WeightedCluster::default()
    });
    let timeout = forward.timeout.filter(|timeout| !timeout.is_zero());
    RouteAction {
        max_stream_duration: timeout.map(|timeout| MaxStreamDuration {
            max_stream_duration: Some(duration(timeout)),
            ..MaxStreamDuration::default()
        }),
        retry_policy: forward.retry.as_ref().and_then(retries),
        ..action(clusters, sticky)
    }
}

fn nowhere() -> RouteAction {
    action(ClusterSpecifier::Cluster(NOWHERE.to_owned()), false)
}

fn action(cluster: ClusterSpecifier, sticky: bool) -> RouteAction {
    let channel = hash_policy::PolicySpecifier::FilterState(hash_policy::FilterState {
        key: CHANNEL.to_owned(),
    });
    let hash = sticky.then_some(HashPolicy {
        policy_specifier: Some(channel),
        ..HashPolicy::default()
    });
    RouteAction {
        hash_policy: hash.into_iter().collect(),
        cluster_specifier: Some(cluster),
        ..RouteAction::default()
    }
}

/// Retries that a route asks for; none if it asks for none.
fn retries(retry: &Retry) -> Option<RetryPolicy> {
    let mut on: Vec<&str> = retry
        .codes
        .iter()
        .filter_map(|code| status(*code))
        .collect();
    if retry.codes.is_empty() {
        on.push("unavailable");
    }
    on.sort_unstable();
    on.dedup();
    if retry.attempts == 0 || on.is_empty() {
        return None;
    }
    let base = retry
        .backoff
        .unwrap_or(tables::BACKOFF_BASE)
        .max(Duration::from_millis(1));
    Some(RetryPolicy {
        retry_on: on.join(","),
        num_retries: number(retry.attempts.min(MOST_RETRIES)),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(base)),
            max_interval: Some(duration(tables::BACKOFF_MAX.max(base * 10))),
        }),
        ..RetryPolicy::default()
    })
}

/// The retryable status of gRPC that an HTTP code stands for.
fn status(code: StatusCode) -> Option<&'static str> {
    match code.as_u16() {
        429 => Some("resource-exhausted"),
        499 => Some("cancelled"),
        500 => Some("internal"),
        502 | 503 => Some("unavailable"),
        504 => Some("deadline-exceeded"),
        _ => None,
    }
}
