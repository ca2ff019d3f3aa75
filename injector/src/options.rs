//! What one pod says about its own sidecar: annotations parsed once, each error with its remedy.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use ipnet::IpNet;
use tulle_identity::ca_client::ControlName;
use tulle_runtime::names::{annotations as names, labels};

use crate::config::Resources;
use crate::{InjectError, InjectorConfig, Warning, WarningReason};

mod limits;
mod resources;

/// Annotations of ours that mean something; any other under `tulle.dev/` earns a warning.
const KNOWN: [&str; 16] = [
    labels::INJECT,
    names::STATUS,
    names::MERGE_METRICS,
    names::EXCLUDE_INBOUND_PORTS,
    names::EXCLUDE_OUTBOUND_PORTS,
    names::EXCLUDE_OUTBOUND_CIDRS,
    names::LOG_LEVEL,
    names::NATIVE_SIDECAR,
    names::ACCESS_LOG,
    names::INGRESS_HEADERS,
    names::XDS_ADDRESS,
    names::XDS_NAME,
    names::CPU_REQUEST,
    names::CPU_LIMIT,
    names::MEMORY_REQUEST,
    names::MEMORY_LIMIT,
];

type Annotations<'a> = Option<&'a BTreeMap<String, String>>;

/// The sidecar's settings after the pod had its say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) exclude_inbound_ports: Vec<u16>,
    pub(crate) exclude_outbound_ports: Vec<u16>,
    pub(crate) exclude_outbound_cidrs: Vec<IpNet>,
    pub(crate) log: String,
    pub(crate) native_sidecar: bool,
    /// Whether Prometheus is sent to the sidecar.
    pub(crate) merge_metrics: bool,
    pub(crate) access_log: bool,
    /// Whether apps get what clients outside the mesh say of how they were reached.
    pub(crate) keep_ingress_headers: bool,
    /// Another control plane, and who it must be.
    pub(crate) xds_address: Option<String>,
    pub(crate) xds_name: Option<String>,
    /// Limits as the sidecar's variables.
    pub(crate) limits: BTreeMap<&'static str, String>,
    pub(crate) resources: Resources,
    /// Bad values that are ignored, because nothing but logs and metrics depends on them: a line for each.
    ignored: Vec<String>,
}

impl Options {
    pub(crate) fn parse(
        annotations: Annotations<'_>,
        config: &InjectorConfig,
    ) -> Result<Self, InjectError> {
        let get = |name: &str| {
            annotations
                .and_then(|all| all.get(name))
                .map(String::as_str)
        };
        let mut ignored = Vec::new();
        Ok(Self {
            exclude_inbound_ports: ports(
                names::EXCLUDE_INBOUND_PORTS,
                get(names::EXCLUDE_INBOUND_PORTS),
            )?,
            exclude_outbound_ports: ports(
                names::EXCLUDE_OUTBOUND_PORTS,
                get(names::EXCLUDE_OUTBOUND_PORTS),
            )?,
            exclude_outbound_cidrs: cidrs(
                names::EXCLUDE_OUTBOUND_CIDRS,
                get(names::EXCLUDE_OUTBOUND_CIDRS),
            )?,
            log: get(names::LOG_LEVEL)
                .map(|value| log_filter(names::LOG_LEVEL, value))
                .and_then(|said| or_ignore(said, &mut ignored))
                .unwrap_or_else(|| config.log.clone()),
            merge_metrics: truth(names::MERGE_METRICS, get(names::MERGE_METRICS))
                .transpose()
                .and_then(|said| or_ignore(said, &mut ignored))
                .unwrap_or(config.merge_metrics),
            native_sidecar: truth(names::NATIVE_SIDECAR, get(names::NATIVE_SIDECAR))?
                .unwrap_or(config.native_sidecar),
            access_log: choice(
                names::ACCESS_LOG,
                get(names::ACCESS_LOG),
                ["json", "off"],
                "write `json` or `off`",
            )
            .transpose()
            .and_then(|said| or_ignore(said, &mut ignored))
            .unwrap_or(config.access_log),
            keep_ingress_headers: choice(
                names::INGRESS_HEADERS,
                get(names::INGRESS_HEADERS),
                ["keep", "strip"],
                "write `strip` or `keep`",
            )?
            .unwrap_or(false),
            xds_address: get(names::XDS_ADDRESS)
                .map(|value| host_and_port(names::XDS_ADDRESS, value))
                .transpose()?,
            xds_name: get(names::XDS_NAME)
                .map(|value| server_name(value, get(names::XDS_ADDRESS).is_some()))
                .transpose()?,
            limits: limits::parse(annotations)?,
            resources: resources::parse(get, &config.resources)?,
            ignored,
        })
    }

    /// A line for each thing that the pod says in vain.
    pub(crate) fn warnings(&self, annotations: Annotations<'_>) -> Vec<Warning> {
        let of = |reason| move |message| Warning::new(reason, message);
        let ignored = self.ignored.iter().cloned();
        let mut warnings: Vec<_> = ignored.map(of(WarningReason::Value)).collect();
        warnings.extend(
            unknown(annotations)
                .into_iter()
                .map(of(WarningReason::Unknown)),
        );
        let limit = limits::warning(&self.limits, &self.resources);
        warnings.extend(limit.map(of(WarningReason::Limit)));
        warnings
    }
}

/// One line for each annotation of ours that nobody reads: most likely a typing error.
fn unknown(annotations: Annotations<'_>) -> Vec<String> {
    annotations
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|name| name.starts_with("tulle.dev/") && !KNOWN.contains(&name.as_str()))
        .map(|name| format!("annotation {name} is not known and has no effect: check its spelling"))
        .collect()
}

/// What was said, if it could be read: what was not is a line among the ignored.
fn or_ignore<T>(said: Result<T, InjectError>, ignored: &mut Vec<String>) -> Option<T> {
    said.map_err(|error| ignored.push(format!("ignored: {error}")))
        .ok()
}

fn items(value: Option<&str>) -> impl Iterator<Item = &str> {
    let listed = value.filter(|value| !value.trim().is_empty());
    listed
        .into_iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn ports(name: &'static str, value: Option<&str>) -> Result<Vec<u16>, InjectError> {
    let parse = |item: &str| item.parse::<u16>().ok().filter(|port| *port != 0);
    let mut ports = items(value)
        .map(|item| {
            parse(item).ok_or_else(|| InjectError::Annotation {
                name,
                value: value.unwrap_or_default().to_owned(),
                problem: format!("{item:?} is not a port"),
                remedy: "write ports from 1 to 65535 with commas between, such as `3306,6379`",
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn cidrs(name: &'static str, value: Option<&str>) -> Result<Vec<IpNet>, InjectError> {
    let mut networks = items(value)
        .map(|item| {
            item.parse::<IpNet>().map(|network| network.trunc()).map_err(|_| InjectError::Annotation {
                name,
                value: value.unwrap_or_default().to_owned(),
                problem: format!("{item:?} is not a network"),
                remedy: "write networks with commas between, such as `10.0.0.0/8,192.0.2.1/32,2001:db8::/32`",
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    networks.sort_unstable();
    networks.dedup();
    Ok(networks)
}

/// The part of the directive syntax that a sidecar is ever tuned with: levels, alone or for a target.
pub(crate) fn log_filter(name: &'static str, value: &str) -> Result<String, InjectError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_target = |target: &str| {
        !target.is_empty()
            && target
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
    };
    let understood = |item: &str| match item.split_once('=') {
        None => LEVELS.contains(&item),
        Some((target, level)) => is_target(target) && LEVELS.contains(&level),
    };
    match value
        .split(',')
        .map(str::trim)
        .find(|item| !understood(item))
    {
        None => Ok(value
            .split(',')
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(",")),
        Some(item) => Err(InjectError::Annotation {
            name,
            value: value.to_owned(),
            problem: format!("{item:?} is not a log level"),
            remedy: "write off, error, warn, info, debug or trace, alone or for a target: `info,tulle_proxy=debug`",
        }),
    }
}

/// Whether it is a DNS name, with a dot at the end or without, or an address, of IPv6 in brackets.
fn is_host(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    if let Some(address) = bracketed {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        let ends = !label.starts_with('-') && !label.ends_with('-');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && ends && label.bytes().all(plain)
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

pub(crate) fn host_and_port(name: &'static str, value: &str) -> Result<String, InjectError> {
    let value = value.trim();
    let port = value.rsplit_once(':').filter(|(host, _)| is_host(host));
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(value.to_owned()),
        _ => Err(InjectError::Annotation {
            name,
            value: value.to_owned(),
            problem: "it is not a host and a port".to_owned(),
            remedy: "write them with a colon between, such as `config.infra.svc:18000`",
        }),
    }
}

fn server_name(value: &str, has_address: bool) -> Result<String, InjectError> {
    let value = value.trim();
    let refused = |problem: &str, remedy| InjectError::Annotation {
        name: names::XDS_NAME,
        value: value.to_owned(),
        problem: problem.to_owned(),
        remedy,
    };
    // As the sidecar reads it.
    if value.parse::<ControlName>().is_err() {
        return Err(refused(
            "it is neither a SPIFFE id nor a DNS name",
            "write what the control plane's certificate carries, such as \
                `spiffe://cluster.local/ns/infra/sa/config`",
        ));
    }
    if !has_address {
        return Err(refused(
            "nothing says where that control plane is",
            "write its address as `tulle.dev/xds-address`, too, or remove the name",
        ));
    }
    Ok(value.to_owned())
}

fn truth(name: &'static str, value: Option<&str>) -> Result<Option<bool>, InjectError> {
    choice(name, value, ["true", "false"], "write `true` or `false`")
}

/// `Some(true)` for the first of two words, `Some(false)` for the second.
fn choice(
    name: &'static str,
    value: Option<&str>,
    words: [&str; 2],
    remedy: &'static str,
) -> Result<Option<bool>, InjectError> {
    let Some(value) = value else { return Ok(None) };
    match words.iter().position(|word| *word == value.trim()) {
        Some(index) => Ok(Some(index == 0)),
        None => Err(InjectError::Annotation {
            name,
            value: value.to_owned(),
            problem: "it is not one of its two values".to_owned(),
            remedy,
        }),
    }
}

#[cfg(test)]
mod tests;
