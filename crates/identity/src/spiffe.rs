//! SPIFFE ids and trust domains, parsed strictly.
//!
//! Whatever is not byte for byte the canonical form is refused, so that two ids are the same workload exactly if they are
//! the same string: no case folding, no percent-decoding, no ports, no trailing slashes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// Longest SPIFFE id that the specification asks implementations to take.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_LABEL: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

/// A name is not a SPIFFE id or trust domain of a mesh workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}`: {reason}")]
pub struct ParseIdError {
    value: String,
    reason: &'static str,
}

impl ParseIdError {
    fn new(value: &str, reason: &'static str) -> Self {
        // The value is a stranger's: escaped and cut before it may reach a log.
        let value = value
            .chars()
            .take(128)
            .collect::<String>()
            .escape_default()
            .to_string();
        Self { value, reason }
    }
}

/// The name of a mesh: all its workloads share its roots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare trust domain name, such as `cluster.local`.
    ///
    /// # Errors
    /// If it is empty, too long, or has a character outside `[a-z0-9._-]`.
    pub fn new(name: &str) -> Result<Self, ParseIdError> {
        let fail = |reason| Err(ParseIdError::new(name, reason));
        if name.is_empty() {
            return fail("the trust domain is empty");
        }
        if name.len() > MAX_TRUST_DOMAIN {
            return fail("the trust domain is longer than 255 bytes");
        }
        if !name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
        {
            return fail("a trust domain has only lower-case letters, digits, `.`, `-` and `_`");
        }
        Ok(Self(name.into()))
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE id of the trust domain itself, which its root certificates carry.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = ParseIdError;

    fn from_str(name: &str) -> Result<Self, ParseIdError> {
        Self::new(name)
    }
}

/// A workload's name: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cheap to clone, compared byte by byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Length of the trust domain inside `uri`.
    domain: u16,
    /// Length of the namespace inside `uri`.
    namespace: u16,
}

impl SpiffeId {
    /// The id of a service account.
    ///
    /// # Errors
    /// If namespace or service account is not a Kubernetes name.
    pub fn new(
        domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseIdError> {
        Self::parse(&format!(
            "{SCHEME}{domain}/ns/{namespace}/sa/{service_account}"
        ))
    }

    /// Parses an id, strictly.
    ///
    /// # Errors
    /// If it is anything but the canonical form of a mesh workload's id.
    pub fn parse(uri: &str) -> Result<Self, ParseIdError> {
        let fail = |reason| Err(ParseIdError::new(uri, reason));
        if uri.len() > MAX_ID {
            return fail("longer than 2048 bytes");
        }
        let Some(rest) = uri.strip_prefix(SCHEME) else {
            return fail("it does not begin with `spiffe://`");
        };
        let Some((domain, path)) = rest.split_once('/') else {
            return fail("it has no path; expected /ns/<namespace>/sa/<service account>");
        };
        if let Err(e) = TrustDomain::new(domain) {
            return fail(e.reason);
        }
        let mut segments = path.split('/');
        let parts = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        );
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) = parts else {
            return fail("the path is not /ns/<namespace>/sa/<service account>");
        };
        if !is_label(namespace) {
            return fail("the namespace is not a Kubernetes name");
        }
        if account.len() > MAX_SUBDOMAIN || !account.split('.').all(is_label_of_any_length) {
            return fail("the service account is not a Kubernetes name");
        }
        // Both lengths are at most 255.
        Ok(Self {
            uri: uri.into(),
            domain: domain.len() as u16,
            namespace: namespace.len() as u16,
        })
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Name of the trust domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.uri[SCHEME.len()..SCHEME.len() + usize::from(self.domain)]
    }

    /// The trust domain as a value of its own.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.domain().into())
    }

    /// Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let from = self.namespace_start();
        &self.uri[from..from + usize::from(self.namespace)]
    }

    /// Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.uri[self.namespace_start() + usize::from(self.namespace) + "/sa/".len()..]
    }

    /// The id as Istio's metrics and policies write it: without the scheme.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    fn namespace_start(&self) -> usize {
        SCHEME.len() + usize::from(self.domain) + "/ns/".len()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseIdError;

    fn from_str(uri: &str) -> Result<Self, ParseIdError> {
        Self::parse(uri)
    }
}

/// An RFC 1123 label: what Kubernetes allows as a namespace.
fn is_label(name: &str) -> bool {
    name.len() <= MAX_LABEL && is_label_of_any_length(name)
}

fn is_label_of_any_length(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_31_canonical_ids_are_taken_apart() {
        let id = SpiffeId::parse("spiffe://mesh_1.example/ns/shop/sa/front.end-1").unwrap();
        assert_eq!(id.domain(), "mesh_1.example");
        assert_eq!(
            id.trust_domain(),
            TrustDomain::new("mesh_1.example").unwrap()
        );
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "front.end-1");
        assert_eq!(id.principal(), "mesh_1.example/ns/shop/sa/front.end-1");
        assert_eq!(
            id.to_string(),
            "spiffe://mesh_1.example/ns/shop/sa/front.end-1"
        );
        assert_eq!(
            id,
            SpiffeId::new(&id.trust_domain(), "shop", "front.end-1").unwrap()
        );
    }

    #[test]
    fn row_31_look_alikes_are_refused() {
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(254));
        let longer = format!("spiffe://td/ns/a/sa/{}", "b".repeat(3000));
        let long_domain = format!("spiffe://{}/ns/a/sa/b", "d".repeat(256));
        let long_namespace = format!("spiffe://td/ns/{}/sa/b", "n".repeat(64));
        let rows: &[(&str, &str)] = &[
            ("empty", ""),
            ("scheme only", "spiffe://"),
            ("no scheme", "td/ns/a/sa/b"),
            ("other scheme", "https://td/ns/a/sa/b"),
            ("scheme in capitals", "SPIFFE://td/ns/a/sa/b"),
            ("scheme with one slash", "spiffe:/td/ns/a/sa/b"),
            ("leading space", " spiffe://td/ns/a/sa/b"),
            ("trailing space", "spiffe://td/ns/a/sa/b "),
            ("trailing newline", "spiffe://td/ns/a/sa/b\n"),
            ("empty trust domain", "spiffe:///ns/a/sa/b"),
            ("trust domain in capitals", "spiffe://TD/ns/a/sa/b"),
            ("port", "spiffe://td:443/ns/a/sa/b"),
            ("user", "spiffe://me@td/ns/a/sa/b"),
            ("percent-encoded trust domain", "spiffe://t%64/ns/a/sa/b"),
            ("cyrillic trust domain", "spiffe://t\u{0501}/ns/a/sa/b"),
            ("NUL in the trust domain", "spiffe://td\0evil/ns/a/sa/b"),
            ("trust domain too long", &long_domain),
            ("no path", "spiffe://td"),
            ("root path", "spiffe://td/"),
            ("no service account", "spiffe://td/ns/a"),
            ("empty service account", "spiffe://td/ns/a/sa/"),
            ("empty namespace", "spiffe://td/ns//sa/b"),
            ("other keys", "spiffe://td/namespace/a/sa/b"),
            ("keys in capitals", "spiffe://td/NS/a/SA/b"),
            ("keys swapped", "spiffe://td/sa/b/ns/a"),
            ("extra segment", "spiffe://td/ns/a/sa/b/c"),
            ("extra segment before", "spiffe://td/x/ns/a/sa/b"),
            ("trailing slash", "spiffe://td/ns/a/sa/b/"),
            ("double slash", "spiffe://td//ns/a/sa/b"),
            ("dot segment", "spiffe://td/ns/./sa/b"),
            ("dot-dot segment", "spiffe://td/ns/a/sa/.."),
            ("percent-encoded slash", "spiffe://td/ns/a%2fsa/sa/b"),
            ("percent-encoded name", "spiffe://td/ns/a/sa/%62"),
            ("query", "spiffe://td/ns/a/sa/b?x=1"),
            ("fragment", "spiffe://td/ns/a/sa/b#x"),
            ("namespace in capitals", "spiffe://td/ns/A/sa/b"),
            ("namespace with a dot", "spiffe://td/ns/a.b/sa/b"),
            ("namespace with an underscore", "spiffe://td/ns/a_b/sa/b"),
            (
                "namespace that begins with a dash",
                "spiffe://td/ns/-a/sa/b",
            ),
            ("namespace too long", &long_namespace),
            (
                "service account with empty label",
                "spiffe://td/ns/a/sa/b..c",
            ),
            ("service account with wildcard", "spiffe://td/ns/a/sa/*"),
            ("service account too long", &long),
            ("id too long", &longer),
        ];
        for (name, uri) in rows {
            assert!(SpiffeId::parse(uri).is_err(), "{name}: {uri} was taken");
        }
    }

    #[test]
    fn trust_domains_follow_the_charset() {
        let rows = [
            ("cluster.local", true),
            ("a", true),
            ("a_b-c.1", true),
            ("", false),
            ("Cluster.local", false),
            ("a/b", false),
            ("a:1", false),
            ("a b", false),
            ("spiffe://a", false),
        ];
        for (name, valid) in rows {
            assert_eq!(TrustDomain::new(name).is_ok(), valid, "{name}");
        }
    }

    #[test]
    fn errors_name_the_value_escaped() {
        let error = SpiffeId::parse("spiffe://td/ns/a/sa/b\n\u{1b}[31m")
            .unwrap_err()
            .to_string();
        assert!(error.contains("service account"), "{error}");
        assert!(
            !error.contains('\n') && !error.contains('\u{1b}'),
            "{error}"
        );
    }
}
