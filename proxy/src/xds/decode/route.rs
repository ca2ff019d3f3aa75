//! `RouteConfiguration`: the routes of one listener.
//!
//! A listener stands for one destination, so in a mesh its routes are those of a single virtual host `*`: the Host header
//! does not choose. Where a foreign control plane sends several, it does. A hash policy counts where the cluster's policy
//! hashes.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::{Authority, PathAndQuery, Scheme};
use tulle_xds_proto::envoy::config::route::v3 as pb;
use tulle_xds_proto::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier,
};
use tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use tulle_xds_proto::google::protobuf::Any;

use super::error::{At, DecodeError, duration, refuse, same_name, unpack};
use super::{balancing, header, matching, retry, virtual_host};
use crate::config::RouteTable;
use crate::config::route::{
    Forward, HeaderChanges, PathRewrite, Redirect, Route, RouteAction, WeightedCluster,
};

/// Clusters that one route splits over.
const MAX_CLUSTERS: usize = 1_000;
/// Envoy's timeout of a route that has none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn decode(name: &str, any: &Any) -> Result<RouteTable, DecodeError> {
    let message: pb::RouteConfiguration = unpack(any)?;
    same_name("name", &message.name, name)?;
    table(&message)
}

/// The routes of a configuration, sent by itself or inside a listener.
pub(super) fn table(message: &pb::RouteConfiguration) -> Result<RouteTable, DecodeError> {
    let to_routes = "change the headers in the routes";
    let changes_headers = !message.request_headers_to_add.is_empty()
        || !message.request_headers_to_remove.is_empty()
        || !message.response_headers_to_add.is_empty()
        || !message.response_headers_to_remove.is_empty();
    refuse(changes_headers, "request_headers_to_add", to_routes)?;
    refuse(
        message.vhds.is_some(),
        "vhds",
        "send the virtual hosts here",
    )?;
    refuse(
        !message.request_mirror_policies.is_empty(),
        "request_mirror_policies",
        "remove them",
    )?;
    refuse(
        !message.typed_per_filter_config.is_empty(),
        "typed_per_filter_config",
        "remove it",
    )?;
    refuse(
        !message.vhost_header.is_empty(),
        "vhost_header",
        "virtual hosts are found by Host or :authority",
    )?;
    refuse(
        message.ignore_path_parameters_in_path_matching,
        "ignore_path_parameters_in_path_matching",
        "paths are matched as they are",
    )?;
    let specified = !message.route_specifiers.is_empty();
    refuse(specified, "route_specifiers", "remove them")?;
    let (routes, hosts) = virtual_host::decode(message)?;
    Ok(RouteTable {
        name: message.name.as_str().into(),
        routes,
        hosts,
    })
}

/// `host_retry`: the retries of a route that says nothing about them.
pub(super) fn route(
    message: &pb::Route,
    host_retry: Option<&pb::RetryPolicy>,
) -> Result<Route, DecodeError> {
    refuse(
        !message.typed_per_filter_config.is_empty(),
        "typed_per_filter_config",
        "remove it",
    )?;
    let specified = !message.route_specifiers.is_empty();
    refuse(specified, "route_specifiers", "remove them")?;
    let Some(rule) = &message.r#match else {
        return Err(DecodeError::missing(
            "match",
            "use prefix / to match every request",
        ));
    };
    let action = match &message.action {
        Some(Action::Route(action)) => forward(action, host_retry)
            .map(RouteAction::Forward)
            .at("route")?,
        Some(Action::Redirect(action)) => {
            redirect(action).map(RouteAction::Redirect).at("redirect")?
        }
        Some(Action::DirectResponse(action)) => {
            RouteAction::Respond(retry::status("direct_response.status", action.status)?)
        }
        Some(Action::FilterAction(_) | Action::NonForwardingAction(_)) | None => {
            let remedy = "use route, redirect or direct_response";
            return Err(DecodeError::missing("action", remedy));
        }
    };
    Ok(Route {
        name: message.name.as_str().into(),
        matches: matching::route_match(rule).at("match")?,
        action,
        request_headers: header::changes(
            "request_headers",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
        )?,
        response_headers: header::changes(
            "response_headers",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
    })
}

fn cluster_not_found(message: &pb::RouteAction) -> Result<StatusCode, DecodeError> {
    use pb::route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(message.cluster_not_found_response_code) {
        Ok(Code::ServiceUnavailable) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Code::NotFound) => Ok(StatusCode::NOT_FOUND),
        Ok(Code::InternalServerError) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => Err(DecodeError::unsupported(
            "cluster_not_found_response_code",
            "use SERVICE_UNAVAILABLE, NOT_FOUND or INTERNAL_SERVER_ERROR",
        )),
    }
}

fn forward(
    message: &pb::RouteAction,
    host_retry: Option<&pb::RetryPolicy>,
) -> Result<Forward, DecodeError> {
    refuse_unsupported(message)?;
    let retry_policy = message.retry_policy.as_ref().or(host_retry);
    let per_try = retry_policy.and_then(|policy| policy.per_try_timeout.as_ref());
    let (clusters, total_weight) = clusters(message.cluster_specifier.as_ref())?;
    // Zero switches a timeout off.
    let timeout = duration("timeout", message.timeout.as_ref())?.unwrap_or(DEFAULT_TIMEOUT);
    Ok(Forward {
        clusters,
        total_weight,
        cluster_not_found: cluster_not_found(message)?,
        path_rewrite: path_rewrite(message)?,
        host_rewrite: match &message.host_rewrite_specifier {
            None => None,
            Some(HostRewriteSpecifier::HostRewriteLiteral(literal)) => {
                host("host_rewrite_literal", literal)?;
                let value = literal.parse();
                Some(value.map_err(|error| {
                    DecodeError::invalid("host_rewrite_literal", literal, error)
                })?)
            }
            Some(_) => {
                let remedy = "use host_rewrite_literal";
                return Err(DecodeError::unsupported("host_rewrite_specifier", remedy));
            }
        },
        timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
        per_try_timeout: duration("per_try_timeout", per_try)
            .at("retry_policy")?
            .filter(|timeout| !timeout.is_zero()),
        retry: retry_policy
            .map_or_else(|| Ok(retry::none()), retry::decode)
            .at("retry_policy")?,
        hash: balancing::of_requests(&message.hash_policy)?,
    })
}

#[expect(
    deprecated,
    reason = "`cors` would change the meaning, so it is looked at"
)]
fn refuse_unsupported(message: &pb::RouteAction) -> Result<(), DecodeError> {
    refuse(
        message.metadata_match.is_some(),
        "metadata_match",
        "use one cluster for each subset",
    )?;
    refuse(
        !message.request_mirror_policies.is_empty(),
        "request_mirror_policies",
        "remove them",
    )?;
    refuse(
        !message.rate_limits.is_empty(),
        "rate_limits",
        "remove them",
    )?;
    refuse(message.cors.is_some(), "cors", "remove it")?;
    refuse(message.hedge_policy.is_some(), "hedge_policy", "remove it")?;
    refuse(
        message.internal_redirect_policy.is_some(),
        "internal_redirect_policy",
        "remove it",
    )?;
    refuse(
        message.max_stream_duration.is_some(),
        "max_stream_duration",
        "use timeout",
    )?;
    refuse(
        message.path_rewrite_policy.is_some(),
        "path_rewrite_policy",
        "use prefix_rewrite",
    )
}

fn clusters(
    specifier: Option<&ClusterSpecifier>,
) -> Result<(Vec<WeightedCluster>, u32), DecodeError> {
    let weighted = match specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            let only = WeightedCluster {
                name: cluster_name("cluster", name)?,
                weight: 1,
                request_headers: HeaderChanges::default(),
                response_headers: HeaderChanges::default(),
            };
            return Ok((vec![only], 1));
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
        Some(_) => {
            let remedy = "use cluster or weighted_clusters";
            return Err(DecodeError::unsupported("cluster_specifier", remedy));
        }
        None => return Err(DecodeError::missing("cluster", "name the cluster")),
    };
    if weighted.clusters.len() > MAX_CLUSTERS {
        let remedy = format!("a route splits over at most {MAX_CLUSTERS} clusters");
        let count = weighted.clusters.len();
        return Err(DecodeError::invalid(
            "weighted_clusters.clusters",
            count,
            remedy,
        ));
    }
    let mut clusters = Vec::with_capacity(weighted.clusters.len());
    let mut total = 0_u32;
    for (i, message) in weighted.clusters.iter().enumerate() {
        let cluster = weighted_cluster(message)
            .at_index("clusters", i)
            .at("weighted_clusters")?;
        total = total.checked_add(cluster.weight).ok_or_else(|| {
            DecodeError::invalid(
                "weighted_clusters",
                "the sum of weights",
                "it must fit 32 bits",
            )
        })?;
        clusters.push(cluster);
    }
    if total == 0 {
        let remedy = "at least one weight must be greater than zero";
        return Err(DecodeError::invalid(
            "weighted_clusters",
            "the sum of weights",
            remedy,
        ));
    }
    Ok((clusters, total))
}

fn weighted_cluster(
    message: &pb::weighted_cluster::ClusterWeight,
) -> Result<WeightedCluster, DecodeError> {
    refuse(
        !message.cluster_header.is_empty(),
        "cluster_header",
        "name the cluster",
    )?;
    refuse(
        message.metadata_match.is_some(),
        "metadata_match",
        "use one cluster for each subset",
    )?;
    refuse(
        !message.typed_per_filter_config.is_empty(),
        "typed_per_filter_config",
        "remove it",
    )?;
    refuse(
        message.host_rewrite_specifier.is_some(),
        "host_rewrite_literal",
        "rewrite it in the route",
    )?;
    Ok(WeightedCluster {
        name: cluster_name("name", &message.name)?,
        weight: message.weight.as_ref().map_or(0, |weight| weight.value),
        request_headers: header::changes(
            "request_headers",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
        )?,
        response_headers: header::changes(
            "response_headers",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
    })
}

pub(super) fn cluster_name(field: &str, name: &str) -> Result<Arc<str>, DecodeError> {
    if name.is_empty() {
        Err(DecodeError::missing(field, "name the cluster"))
    } else {
        Ok(name.into())
    }
}

fn path_rewrite(message: &pb::RouteAction) -> Result<Option<PathRewrite>, DecodeError> {
    if let Some(rewrite) = &message.regex_rewrite {
        return regex_rewrite(rewrite).map(Some).at("regex_rewrite");
    }
    if !message.path_rewrite.is_empty() {
        return literal_path("path_rewrite", &message.path_rewrite).map(Some);
    }
    match message.prefix_rewrite.as_str() {
        "" => Ok(None),
        prefix => literal_prefix("prefix_rewrite", prefix).map(Some),
    }
}

/// Rewriting by pattern is understood where it replaces the whole path, which has no other form in older servers.
fn regex_rewrite(message: &RegexMatchAndSubstitute) -> Result<PathRewrite, DecodeError> {
    let pattern = message
        .pattern
        .as_ref()
        .map_or("", |pattern| pattern.regex.as_str());
    if !matches!(
        pattern,
        "^/.*$" | "^/.*" | "/.*" | "^.*$" | ".*" | "/.+" | "^/.+$"
    ) {
        let remedy = "only the whole path can be replaced (^/.*$); use prefix_rewrite for a prefix";
        return Err(DecodeError::invalid("pattern.regex", pattern, remedy));
    }
    // A backslash begins a group, two of them are one.
    let literal = message.substitution.replace(r"\\", "\0");
    if literal.contains(['\\']) {
        let remedy = "groups are not supported; give the new path literally";
        return Err(DecodeError::invalid(
            "substitution",
            &message.substitution,
            remedy,
        ));
    }
    literal_path("substitution", &literal.replace('\0', r"\"))
}

fn literal_path(field: &str, path: &str) -> Result<PathRewrite, DecodeError> {
    if path.contains('%') && field == "path_rewrite" {
        let remedy = "command operators are not supported; use regex_rewrite with ^/.*$";
        return Err(DecodeError::invalid(field, path, remedy));
    }
    if !is_path(path) {
        let remedy = "a path begins with /, has no query, and what a URI cannot hold is escaped";
        return Err(DecodeError::invalid(field, path, remedy));
    }
    Ok(PathRewrite::Full(path.into()))
}

/// A prefix may lack its slash.
fn literal_prefix(field: &str, prefix: &str) -> Result<PathRewrite, DecodeError> {
    if !is_path(&format!("/{}", prefix.trim_start_matches('/'))) {
        let remedy = "a path has no query, and what a URI cannot hold is escaped";
        return Err(DecodeError::invalid(field, prefix, remedy));
    }
    Ok(PathRewrite::Prefix(prefix.into()))
}

/// Whether every request to which this is the path is one.
fn is_path(path: &str) -> bool {
    let parsed = path.parse::<PathAndQuery>();
    path.starts_with('/')
        && parsed.is_ok_and(|parsed| parsed.as_str() == path && parsed.query().is_none())
}

/// A host, perhaps with a port, and without a user.
fn host(field: &str, host: &str) -> Result<Authority, DecodeError> {
    match host.parse::<Authority>() {
        Ok(authority) if !host.contains('@') => Ok(authority),
        _ => Err(DecodeError::invalid(field, host, "it is a host name")),
    }
}

fn redirect(message: &pb::RedirectAction) -> Result<Redirect, DecodeError> {
    refuse(message.strip_query, "strip_query", "the query stays")?;
    let scheme = match &message.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some(Scheme::HTTPS),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            let parsed = scheme.to_ascii_lowercase().parse();
            Some(parsed.map_err(|error| DecodeError::invalid("scheme_redirect", scheme, error))?)
        }
    };
    let port =
        match message.port_redirect {
            0 => None,
            port => Some(u16::try_from(port).map_err(|_| {
                DecodeError::invalid("port_redirect", port, "a port is at most 65535")
            })?),
        };
    let path = match &message.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            Some(literal_path("path_redirect", path)?)
        }
        Some(PathRewriteSpecifier::PathRewrite(path)) => Some(literal_path("path_rewrite", path)?),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(literal_prefix("prefix_rewrite", prefix)?)
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            Some(regex_rewrite(rewrite).at("regex_rewrite")?)
        }
    };
    let new_host = message.host_redirect.as_str();
    if !new_host.is_empty() && host("host_redirect", new_host)?.host() != new_host {
        let remedy = "it is a host name; give the port in port_redirect";
        return Err(DecodeError::invalid("host_redirect", new_host, remedy));
    }
    Ok(Redirect {
        scheme,
        host: (!new_host.is_empty()).then(|| new_host.into()),
        port,
        path,
        status: match message.response_code() {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        },
    })
}
