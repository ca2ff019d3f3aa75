//! The virtual hosts of a table: which of its routes a request may use, by the host that it names.
//!
//! As Envoy has it: the whole host first, then suffixes (`*.example.com`), then prefixes (`www.*`), of each kind the
//! longest first, then `*`; case does not matter, and a wildcard stands for at least one byte. A lookup is one hash of the
//! host, and one for each length of wildcard that the table has; it allocates only for a host with capital letters.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::map::Map;

/// The longest domain: a DNS name with a port.
const MAX_DOMAIN: usize = 253 + ":65535".len();

/// Places in the list of virtual hosts, by domains, or parts of them, in lower case.
type Indexes = Map<Box<[u8]>, usize>;

/// Virtual hosts by domain.
#[derive(Clone, Debug, Default)]
pub struct VirtualHosts {
    hosts: Vec<VirtualHost>,
    exact: Indexes,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<usize>,
    ignores_port: bool,
    domains: usize,
}

/// One virtual host.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Name for people.
    pub name: Arc<str>,
    /// Domains, as the control plane sent them.
    pub domains: Vec<Box<str>>,
    /// Its part of the table's routes.
    pub routes: Range<usize>,
}

/// Wildcards of one kind without their star, those of one length together, the longest first.
#[derive(Clone, Debug, Default)]
struct Wildcards(Vec<(usize, Indexes)>);

/// A domain that no virtual host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is longer than any host.
    #[error("a domain has at most {MAX_DOMAIN} bytes")]
    Long,
    /// A star where none has a meaning.
    #[error("one star may stand at the beginning or at the end")]
    Star,
    /// The virtual host of this index has it.
    #[error("an earlier virtual host has it")]
    Taken(usize),
}

impl VirtualHosts {
    /// None yet. The port that a request names beside its host counts unless it is to be ignored.
    #[must_use]
    pub fn new(ignores_port: bool) -> Self {
        Self {
            ignores_port,
            ..Self::default()
        }
    }

    /// Adds a virtual host without domains, with a part of the table's routes.
    pub fn push(&mut self, name: &str, routes: Range<usize>) {
        self.hosts.push(VirtualHost {
            name: name.into(),
            domains: Vec::new(),
            routes,
        });
    }

    /// Gives the last virtual host a domain.
    ///
    /// # Errors
    ///
    /// When it is no domain, or another virtual host has it.
    pub fn add(&mut self, domain: &str) -> Result<(), DomainError> {
        let Some(host) = self.hosts.len().checked_sub(1) else {
            return Ok(());
        };
        if domain.len() > MAX_DOMAIN {
            return Err(DomainError::Long);
        }
        let lower = domain.to_ascii_lowercase();
        let taken = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
            _ if lower.is_empty() => return Err(DomainError::Empty),
            (Some(""), _) => match self.any {
                None => {
                    self.any = Some(host);
                    None
                }
                taken => taken,
            },
            (Some(part), _) | (None, Some(part)) if part.contains('*') => {
                return Err(DomainError::Star);
            }
            (Some(suffix), _) => self.suffixes.add(suffix, host),
            (None, Some(prefix)) => self.prefixes.add(prefix, host),
            (None, None) if lower.contains('*') => return Err(DomainError::Star),
            (None, None) => add(&mut self.exact, &lower, host),
        };
        if let Some(taken) = taken {
            return Err(DomainError::Taken(taken));
        }
        self.domains += 1;
        self.hosts[host].domains.push(domain.into());
        Ok(())
    }

    /// All virtual hosts, as they were added.
    #[must_use]
    pub fn all(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// Domains of all virtual hosts.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.domains
    }

    /// Whether the port that a request names is ignored.
    #[must_use]
    pub fn ignores_port(&self) -> bool {
        self.ignores_port
    }

    /// Whether there is one virtual host and it takes every request.
    #[must_use]
    pub fn is_one_for_all(&self) -> bool {
        self.hosts.len() == 1 && self.any.is_some()
    }

    /// The virtual host for a request that names this host, perhaps with a port.
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<&VirtualHost> {
        let host = if self.ignores_port {
            without_port(host)
        } else {
            host
        };
        // Clients hardly ever write capitals.
        let host = if host.iter().any(u8::is_ascii_uppercase) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let found = self
            .exact
            .get(&*host)
            .copied()
            .or_else(|| {
                self.suffixes
                    .find(|len| &host[host.len() - len..], host.len())
            })
            .or_else(|| self.prefixes.find(|len| &host[..len], host.len()))
            .or(self.any);
        self.hosts.get(found?)
    }
}

impl Wildcards {
    fn add(&mut self, part: &str, host: usize) -> Option<usize> {
        let place = self
            .0
            .binary_search_by(|(len, _)| part.len().cmp(len))
            .unwrap_or_else(|place| {
                self.0.insert(place, (part.len(), Indexes::default()));
                place
            });
        add(&mut self.0[place].1, part, host)
    }

    /// `part` cuts so many bytes out of a host of that length.
    fn find<'h>(&self, part: impl Fn(usize) -> &'h [u8], len: usize) -> Option<usize> {
        let shorter = self.0.iter().filter(|(part, _)| *part < len);
        let mut found = shorter.filter_map(|(len, parts)| parts.get(part(*len)));
        found.next().copied()
    }
}

/// Adds what nobody has; else says who has it.
fn add(to: &mut Indexes, domain: &str, host: usize) -> Option<usize> {
    use std::collections::hash_map::Entry;
    match to.entry(domain.as_bytes().into()) {
        Entry::Occupied(taken) => Some(*taken.get()),
        Entry::Vacant(free) => {
            free.insert(host);
            None
        }
    }
}

/// The host alone; colons in brackets are those of an IPv6 address.
fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(colon) if memchr::memchr(b']', &host[colon..]).is_none() => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(ignores_port: bool, domains: &[&str]) -> VirtualHosts {
        let mut hosts = VirtualHosts::new(ignores_port);
        for (at, domain) in domains.iter().enumerate() {
            hosts.push(domain, at..at + 1);
            hosts.add(domain).expect("a good domain");
        }
        hosts
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let domains = [
            "*",
            "*.example.com",
            "*-bar.example.com",
            "www.*",
            "www.example.*",
            "www.example.com",
            "Capital.Example.ORG",
            "with.port:8080",
            "[fd00::1]:80",
            "10.0.0.1",
        ];
        let rows = [
            (
                "exact before suffix and prefix",
                "www.example.com",
                "www.example.com",
            ),
            ("suffix before prefix", "www.a.example.com", "*.example.com"),
            (
                "the longer suffix",
                "foo-bar.example.com",
                "*-bar.example.com",
            ),
            ("a suffix stands for something", ".example.com", "*"),
            ("a suffix needs its dot", "example.com", "*"),
            ("several labels", "a.b.example.com", "*.example.com"),
            ("the longer prefix", "www.example.net", "www.example.*"),
            ("the shorter prefix", "www.org", "www.*"),
            ("a prefix stands for something", "www.", "*"),
            (
                "capitals of the client",
                "WWW.Example.Com",
                "www.example.com",
            ),
            (
                "capitals of the domain",
                "capital.example.org",
                "Capital.Example.ORG",
            ),
            ("capitals before a suffix", "X.EXAMPLE.COM", "*.example.com"),
            (
                "a port that is asked for",
                "with.port:8080",
                "with.port:8080",
            ),
            ("a port that is not", "www.example.com:80", "www.example.*"),
            ("no port where one is asked for", "with.port", "*"),
            ("an address", "10.0.0.1", "10.0.0.1"),
            ("an address and its port", "[fd00::1]:80", "[fd00::1]:80"),
            ("an address without it", "[fd00::1]", "*"),
            ("nobody", "elsewhere", "*"),
            ("nothing", "", "*"),
            (
                "a star is no wildcard of a client",
                "*.example.com",
                "*.example.com",
            ),
        ];
        let hosts = hosts(false, &domains);
        for (name, host, expected) in rows {
            let found = hosts.find(host.as_bytes()).expect("there is one for all");
            assert_eq!(&*found.name, expected, "{name}: {host}");
        }
        let long = [b"a".repeat(1 << 16), b".example.com".to_vec()].concat();
        assert_eq!(&*hosts.find(&long).expect("found").name, "*.example.com");
    }

    #[test]
    fn without_a_star_strangers_find_nothing() {
        let hosts = hosts(false, &["a.example", "*.b.example", "c.*"]);
        for host in ["b.example", "x.a.example", "a.example:80", "c.", "c", ""] {
            assert!(hosts.find(host.as_bytes()).is_none(), "{host}");
        }
        assert!(hosts.find(b"a.example").is_some());
    }

    #[test]
    fn ports_are_ignored_where_that_is_asked_for() {
        let domains = ["a.example", "[fd00::1]", "fd00:*", "*:90", "b.example:80"];
        let (with, without) = (hosts(false, &domains), hosts(true, &domains));
        let rows = [
            ("a.example", Some("a.example"), Some("a.example")),
            ("a.example:80", None, Some("a.example")),
            ("A.Example:", None, Some("a.example")),
            ("[fd00::1]", Some("[fd00::1]"), Some("[fd00::1]")),
            ("[fd00::1]:80", None, Some("[fd00::1]")),
            ("c.example:90", Some("*:90"), None),
            // The domain keeps its port, as in Envoy.
            ("b.example:80", Some("b.example:80"), None),
            ("b.example", None, None),
        ];
        for (host, counted, ignored) in rows {
            let name = |hosts: &VirtualHosts| {
                let found = hosts.find(host.as_bytes());
                found.map(|found| found.name.to_string())
            };
            assert_eq!(name(&with).as_deref(), counted, "{host}");
            assert_eq!(name(&without).as_deref(), ignored, "{host} without port");
        }
    }

    #[test]
    fn domains_are_refused_with_a_reason() {
        let rows = [
            ("", Err(DomainError::Empty)),
            ("**", Err(DomainError::Star)),
            ("a.*.b", Err(DomainError::Star)),
            ("*.a.*", Err(DomainError::Star)),
            ("*a*", Err(DomainError::Star)),
            ("A.example", Err(DomainError::Taken(0))),
            ("*", Err(DomainError::Taken(1))),
            ("*.B.example", Err(DomainError::Taken(2))),
            ("C.*", Err(DomainError::Taken(3))),
            ("*a.example", Ok(())),
            ("a.example*", Ok(())),
        ];
        for (domain, expected) in rows {
            let mut hosts = hosts(false, &["a.example", "*", "*.b.example", "c.*"]);
            hosts.push("new", 0..0);
            assert_eq!(hosts.add(domain), expected, "{domain:?}");
        }
        let mut all = hosts(false, &["a"]);
        assert_eq!(all.add(&"a".repeat(MAX_DOMAIN)), Ok(()));
        let long = "a".repeat(MAX_DOMAIN + 1);
        assert_eq!(all.add(&long), Err(DomainError::Long));
        assert_eq!(all.domains(), 2);
    }

    #[test]
    fn one_host_with_a_star_is_for_all() {
        assert!(hosts(false, &["*"]).is_one_for_all());
        assert!(!hosts(false, &["a"]).is_one_for_all());
        assert!(!hosts(false, &["a", "*"]).is_one_for_all());
    }
}
