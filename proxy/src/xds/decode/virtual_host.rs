//! `VirtualHost`: the routes of a table for requests that name certain hosts.
//!
//! The routes of all of them lie in one list, those of one together. A table whose only virtual host takes every request
//! needs no lookup and has none.

use std::sync::Arc;

use tulle_xds_proto::envoy::config::route::v3 as pb;

use super::error::{At, DecodeError, refuse};
use super::route::route;
use crate::config::Route;
use crate::config::route::{DomainError, VirtualHosts};

/// Routes of one table.
const MAX_ROUTES: usize = 10_000;
/// Domains of one table.
const MAX_DOMAINS: usize = 32 * 1024;

/// The routes of a table in order, and which of them are for which host if not all are for all.
type Hosted = (Vec<Arc<Route>>, Option<Box<VirtualHosts>>);

pub(super) fn decode(message: &pb::RouteConfiguration) -> Result<Hosted, DecodeError> {
    let messages = &message.virtual_hosts;
    let count: usize = messages.iter().map(|host| host.domains.len()).sum();
    if count > MAX_DOMAINS {
        let remedy = format!("a table has at most {MAX_DOMAINS} domains");
        return Err(DecodeError::invalid("virtual_hosts", count, remedy));
    }
    let mut routes = Vec::new();
    let mut hosts = VirtualHosts::new(message.ignore_port_in_host_matching);
    for (i, host) in messages.iter().enumerate() {
        let begin = routes.len();
        routes_of(host, &mut routes).at_index("virtual_hosts", i)?;
        hosts.push(&host.name, begin..routes.len());
        domains(&host.domains, &mut hosts).at_index("virtual_hosts", i)?;
    }
    let chosen = !messages.is_empty() && !hosts.is_one_for_all();
    Ok((routes, chosen.then(|| Box::new(hosts))))
}

/// Gives the virtual host that was added last its domains.
fn domains(domains: &[String], hosts: &mut VirtualHosts) -> Result<(), DecodeError> {
    if domains.is_empty() {
        let remedy = "name the hosts that it is for, or * for all";
        return Err(DecodeError::missing("domains", remedy));
    }
    for (i, domain) in domains.iter().enumerate() {
        hosts
            .add(domain)
            .map_err(|error| bad_domain(domain, error, hosts))
            .at_index("domains", i)?;
    }
    Ok(())
}

fn bad_domain(domain: &str, error: DomainError, hosts: &VirtualHosts) -> DecodeError {
    let all = hosts.all();
    let (DomainError::Taken(at), Some(own)) = (error, all.last()) else {
        return DecodeError::invalid("", domain, error);
    };
    // Two with one domain: which of them is meant, nobody can say.
    let taken = all.get(at).map_or("", |taken| &taken.name);
    let remedy = if at + 1 == all.len() {
        format!("{taken:?} has it twice: send each domain once")
    } else {
        let own = &own.name;
        format!("virtual_hosts[{at}] ({taken:?}) has it, not only {own:?}: send each domain once")
    };
    DecodeError::invalid("", domain, remedy)
}

fn routes_of(message: &pb::VirtualHost, routes: &mut Vec<Arc<Route>>) -> Result<(), DecodeError> {
    refuse_unsupported(message)?;
    let count = routes.len() + message.routes.len();
    if count > MAX_ROUTES {
        let remedy = format!("a table has at most {MAX_ROUTES} routes");
        return Err(DecodeError::invalid("routes", count, remedy));
    }
    let host_retry = message.retry_policy.as_ref();
    for (i, message) in message.routes.iter().enumerate() {
        let route = route(message, host_retry).at_index("routes", i)?;
        routes.push(Arc::new(route));
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "`cors` would change the meaning, so it is looked at"
)]
fn refuse_unsupported(message: &pb::VirtualHost) -> Result<(), DecodeError> {
    let changes_headers = !message.request_headers_to_add.is_empty()
        || !message.request_headers_to_remove.is_empty()
        || !message.response_headers_to_add.is_empty()
        || !message.response_headers_to_remove.is_empty();
    refuse(
        changes_headers,
        "request_headers_to_add",
        "change the headers in the routes",
    )?;
    refuse(message.matcher.is_some(), "matcher", "use routes")?;
    refuse(message.require_tls != 0, "require_tls", "remove it")?;
    refuse(
        !message.rate_limits.is_empty(),
        "rate_limits",
        "remove them",
    )?;
    refuse(message.cors.is_some(), "cors", "remove it")?;
    refuse(
        !message.typed_per_filter_config.is_empty(),
        "typed_per_filter_config",
        "remove it",
    )?;
    refuse(
        !message.request_mirror_policies.is_empty(),
        "request_mirror_policies",
        "remove them",
    )?;
    refuse(message.hedge_policy.is_some(), "hedge_policy", "remove it")?;
    let specified = !message.route_specifiers.is_empty();
    refuse(specified, "route_specifiers", "remove them")?;
    refuse(
        message.retry_policy_typed_config.is_some(),
        "retry_policy_typed_config",
        "use retry_policy",
    )
}
