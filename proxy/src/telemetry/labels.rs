//! The labels of Istio's standard metrics: who called whom, and how it ended.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder};
use tulle_identity::SpiffeId;

use super::record::ResponseFlags;
use crate::config::Workload;
use crate::config::listener::ServiceName;
use crate::conn::Direction;

/// What stands where nothing is known.
const UNKNOWN: &str = "unknown";

/// One end of a connection. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Party {
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) principal: Option<SpiffeId>,
}

/// Whether the connection was protected. The source cannot vouch for what the destination saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Policy {
    #[default]
    Unknown,
    None,
    MutualTls,
}

/// What HTTP metrics have on top of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct HttpLabels {
    /// The status, below 10 the class of one that nobody has defined, or 0: unknown.
    pub(super) code: u16,
    pub(super) grpc_status: Option<u16>,
}

/// The largest status that gRPC knows, and what every other one stands for.
const GRPC_STATUSES: u16 = 16;
const GRPC_UNKNOWN: u16 = 2;
/// What access logs say of a client that left.
const CLIENT_LEFT: u16 = 499;

impl HttpLabels {
    /// Of a response. Whoever answers can think of a thousand codes: those that nobody has defined are one a class, and
    /// statuses that gRPC does not know are what its clients take them for.
    #[inline]
    pub(super) fn of(status: StatusCode, grpc_status: Option<u16>) -> Self {
        let code = status.as_u16();
        let known = status.canonical_reason().is_some() || code == CLIENT_LEFT;
        Self {
            code: if known { code } else { code / 100 },
            grpc_status: grpc_status.map(|status| match status {
                0..=GRPC_STATUSES => status,
                _ => GRPC_UNKNOWN,
            }),
        }
    }
}

/// The labels of one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    /// Outbound is reported by the source, inbound by the destination.
    pub(super) reporter: Direction,
    pub(super) source: Party,
    pub(super) destination: Party,
    pub(super) service: Option<Arc<ServiceName>>,
    /// Traffic to a destination that the mesh does not know.
    pub(super) passthrough: bool,
    pub(super) protocol: &'static str,
    pub(super) http: Option<HttpLabels>,
    pub(super) flags: ResponseFlags,
    pub(super) policy: Policy,
}

impl Labels {
    /// The series that takes what no longer gets one of its own: it keeps only what cannot multiply.
    pub(super) fn overflow(&self) -> Self {
        Self {
            reporter: self.reporter,
            source: Party::default(),
            destination: Party::default(),
            service: None,
            passthrough: false,
            protocol: self.protocol,
            http: self.http.map(|_| HttpLabels {
                code: 0,
                grpc_status: None,
            }),
            flags: ResponseFlags::default(),
            policy: Policy::Unknown,
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.label(
            "reporter",
            match self.reporter {
                Direction::Outbound => "source",
                Direction::Inbound => "destination",
            },
        )?;
        out.party(&self.source, &SOURCE)?;
        out.party(&self.destination, &DESTINATION)?;
        let service = self.service.as_deref();
        let unnamed = if self.passthrough {
            "PassthroughCluster"
        } else {
            UNKNOWN
        };
        out.label(
            "destination_service",
            service.map_or(UNKNOWN, |service| &service.host),
        )?;
        out.label(
            "destination_service_name",
            service.map_or(unnamed, |service| &service.name),
        )?;
        out.label(
            "destination_service_namespace",
            service.map_or(UNKNOWN, |service| &service.namespace),
        )?;
        out.label("request_protocol", self.protocol)?;
        if let Some(http) = self.http {
            match http.code {
                0 => out.label("response_code", UNKNOWN)?,
                class @ 1..=9 => {
                    out.label("response_code", Shown(&format_args!("{class}xx")))?;
                }
                code => out.label("response_code", u64::from(code))?,
            }
            if let Some(status) = http.grpc_status {
                out.label("grpc_response_status", u64::from(status))?;
            }
        }
        out.label("response_flags", Shown(&self.flags))?;
        out.label(
            "connection_security_policy",
            match self.policy {
                Policy::Unknown => UNKNOWN,
                Policy::None => "none",
                Policy::MutualTls => "mutual_tls",
            },
        )
    }
}

/// Label names of one end.
struct Names {
    workload: &'static str,
    workload_namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    cluster: &'static str,
}

const SOURCE: Names = Names {
    workload: "source_workload",
    workload_namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    cluster: "source_cluster",
};

const DESTINATION: Names = Names {
    workload: "destination_workload",
    workload_namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    cluster: "destination_cluster",
};

struct Out<'a, 'b>(&'a mut LabelSetEncoder<'b>);

impl Out<'_, '_> {
    fn label(&mut self, name: &str, value: impl EncodeLabelValue) -> fmt::Result {
        let mut label = self.0.encode_label();
        let mut key = label.encode_label_key()?;
        key.write_str(name)?;
        let mut out = key.encode_label_value()?;
        value.encode(&mut out)?;
        out.finish()
    }

    fn party(&mut self, party: &Party, names: &Names) -> fmt::Result {
        let of = |field: fn(&Workload) -> &Arc<str>| match &party.workload {
            Some(workload) if !field(workload).is_empty() => &**field(workload),
            _ => UNKNOWN,
        };
        self.label(names.workload, of(|w| &w.name))?;
        self.label(names.workload_namespace, of(|w| &w.namespace))?;
        self.label(
            names.principal,
            party.principal.as_ref().map_or(UNKNOWN, SpiffeId::as_str),
        )?;
        self.label(names.app, of(|w| &w.app))?;
        self.label(names.version, of(|w| &w.version))?;
        self.label(names.canonical_service, of(|w| &w.canonical_name))?;
        self.label(names.canonical_revision, of(|w| &w.canonical_revision))?;
        self.label(names.cluster, of(|w| &w.cluster))
    }
}

/// A value that is written as it displays.
struct Shown<'a, T>(&'a T);

impl<T: fmt::Display> EncodeLabelValue for Shown<'_, T> {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}
