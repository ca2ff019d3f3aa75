//! What the servers of this room refuse: counted by server and reason, and told with who asked for what.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::request::Parts;
use http::{StatusCode, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::gate::Gates;

/// Characters of what a client sent that a line repeats.
const SHOWN: usize = 256;

crate::named! {
    /// Why a client was not served.
    pub(super) enum Reason {
        /// Accepting its connection failed.
        Accept = "accept",
        /// What it sent is no request.
        BadHead = "bad_head",
        /// The head of its request is longer than it may be.
        HeadTooLarge = "head_too_large",
        /// It asks for a host that is not this one, as somebody does whose browser was led here.
        Host = "host",
        /// It is a browser, and would change something.
        Browser = "browser",
        /// There is no such page.
        NotFound = "not_found",
        /// The page is there, but not for this method.
        Method = "method",
        /// The body of its request broke off, or is malformed.
        BadBody = "bad_body",
        /// The body of its request is longer than it may be.
        BodyTooLarge = "body_too_large",
        /// The body of its request did not come in time.
        BodyTimeout = "body_timeout",
    }
}

impl Reason {
    /// What the client is told; of a head that cannot be read, and of a connection, the library does.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Browser => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BadHead | Self::BadBody => StatusCode::BAD_REQUEST,
            Self::Accept => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Counts and tells what is refused. Clones are the same one.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Inner>);

#[derive(Default)]
struct Inner {
    refused: Family<Labels, Counter>,
    told: Gates<(&'static str, Reason)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    server: &'static str,
    reason: &'static str,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}

impl Refusals {
    /// Registers the counter; what is refused is told in any case.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let refusals = Self::default();
        registry.register(
            "admin_refused",
            "Requests and connections that the servers for operators, metrics and readiness refused",
            refusals.0.refused.clone(),
        );
        refusals
    }

    /// A request that was read, and is not answered as it wants.
    pub(super) fn request(
        &self,
        server: &'static str,
        client: SocketAddr,
        reason: Reason,
        head: &Parts,
    ) {
        let Some(left_out) = self.count(server, client.ip(), reason) else {
            return;
        };
        if reason == Reason::NotFound {
            return;
        }
        let host = head.headers.get(header::HOST).map(|host| host.as_bytes());
        let host = host.map_or(Cow::Borrowed(""), String::from_utf8_lossy);
        tracing::warn!(
            client.addr = %client,
            server,
            reason = reason.name(),
            method = shown(head.method.as_str()),
            path = shown(head.uri.path()),
            host = shown(&host),
            left_out,
            "refused: a request to a server for operators, metrics or readiness"
        );
    }

    /// What came is no request, as the library found.
    pub(super) fn unread(&self, server: &'static str, client: SocketAddr, error: &hyper::Error) {
        let reason = if error.is_parse_too_large() {
            Reason::HeadTooLarge
        } else {
            Reason::BadHead
        };
        if let Some(left_out) = self.count(server, client.ip(), reason) {
            tracing::warn!(
                client.addr = %client,
                server,
                reason = reason.name(),
                %error,
                left_out,
                "refused: what a server for operators, metrics or readiness cannot read"
            );
        }
    }

    /// No client can be accepted, whoever it is.
    pub(super) fn accept(&self, server: &'static str, error: &io::Error) {
        let anybody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        if let Some(left_out) = self.count(server, anybody, Reason::Accept) {
            tracing::warn!(%error, server, left_out, "cannot accept a connection of operators, metrics or readiness");
        }
    }

    /// Counts; whether a line may be written, and how many were not.
    fn count(&self, server: &'static str, client: IpAddr, reason: Reason) -> Option<u64> {
        let labels = Labels {
            server,
            reason: reason.name(),
        };
        self.0.refused.get_or_create(&labels).inc();
        self.0.told.pass(&(server, reason), client)
    }
}

/// No more of it than a line has room for; without what would end the line.
fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN).collect()
}
