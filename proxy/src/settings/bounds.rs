//! How long peers may do nothing, and how much there may be of what they make grow.
//!
//! The defaults are generous: whatever still moves is never ended, and what stands still only after long enough for
//! nobody to have meant it.

use std::time::Duration;

use tulle_runtime::env::Env;
use tulle_runtime::names::variables;

/// How long peers may do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// An HTTP connection without a first request.
    pub first_request: Duration,
    /// An HTTP connection without another request.
    pub idle: Duration,
    /// A client that pauses in the middle of a body, while its request has no answer yet.
    pub body: Duration,
    /// An HTTP client that does not read its answer.
    pub unread: Duration,
    /// An opaque connection on which nothing moves.
    pub tcp_idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            first_request: 5 * MINUTE,
            idle: 60 * MINUTE,
            body: 15 * MINUTE,
            unread: 15 * MINUTE,
            tcp_idle: 60 * MINUTE,
        }
    }
}

impl Patience {
    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let read = |name, default| match env.duration(name) {
            Some(Duration::ZERO) => {
                env.reject(
                    name,
                    "nothing can be done in no time; use a duration such as 5m",
                );
                default
            }
            other => other.unwrap_or(default),
        };
        Self {
            first_request: read(variables::FIRST_REQUEST_TIMEOUT, default.first_request),
            idle: read(variables::IDLE_TIMEOUT, default.idle),
            body: read(variables::BODY_TIMEOUT, default.body),
            unread: read(variables::UNREAD_TIMEOUT, default.unread),
            tcp_idle: read(variables::TCP_IDLE_TIMEOUT, default.tcp_idle),
        }
    }
}

/// A head of which hyper can read at least as much.
const SMALLEST_HEAD: usize = 8 * 1024;

/// How much there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Captured connections in each direction; `None`: as many as the limit of open files has room for.
    pub connections: Option<usize>,
    /// Requests in flight on a worker.
    pub requests: usize,
    /// Bytes of an HTTP/1 request's head.
    pub head: usize,
    /// Fields of one.
    pub fields: usize,
    /// Bytes of memory; `None`: the limit of the cgroup, if there is one.
    pub memory: Option<u64>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: None,
            requests: 20_000,
            head: 64 * 1024,
            fields: 100,
            memory: None,
        }
    }
}

impl Bounds {
    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let number = |name| {
            let number = env.get::<usize>(name);
            if number == Some(0) {
                env.reject(
                    name,
                    "nothing could be served; leave it out for the default",
                );
            }
            number
        };
        let bytes = |name| {
            let bytes = parse_bytes(env.text(name)?);
            bytes.inspect_err(|reason| env.reject(name, reason)).ok()
        };
        let head = bytes(variables::MAX_HEAD).and_then(|head| usize::try_from(head).ok());
        if head.is_some_and(|head| head < SMALLEST_HEAD) {
            env.reject(
                variables::MAX_HEAD,
                "ordinary requests have more; use at least 8Ki",
            );
        }
        Self {
            connections: number(variables::MAX_CONNECTIONS),
            requests: number(variables::MAX_REQUESTS).unwrap_or(default.requests),
            head: head.unwrap_or(default.head).max(SMALLEST_HEAD),
            fields: number(variables::MAX_FIELDS).unwrap_or(default.fields),
            memory: bytes(variables::MEMORY_LIMIT),
        }
    }
}

/// Reads a number of bytes as Kubernetes writes it: `67108864`, `64Mi` or `1Gi`.
fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    const PROBLEM: &str = "it is no number of bytes; use one such as 64Mi or 1Gi";
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(PROBLEM),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|it| it.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or(PROBLEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_in_kubernetes() {
        for (text, bytes) in [
            ("67108864", Some(64 << 20)),
            ("64Mi", Some(64 << 20)),
            ("1Gi", Some(1 << 30)),
            ("2k", Some(2_000)),
            ("0", None),
            ("", None),
            ("64m", None),
            ("-1", None),
            ("1.5Gi", None),
            ("99999999999Gi", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), bytes, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_said_has_a_default_and_nonsense_is_named() {
        let env = Env::from_pairs::<&str, &str>([]);
        assert_eq!(Patience::from_env(&env), Patience::default());
        assert_eq!(Bounds::from_env(&env), Bounds::default());

        let env = Env::from_pairs([
            (variables::FIRST_REQUEST_TIMEOUT, "1s"),
            (variables::IDLE_TIMEOUT, "2s"),
            (variables::BODY_TIMEOUT, "3s"),
            (variables::UNREAD_TIMEOUT, "4s"),
            (variables::TCP_IDLE_TIMEOUT, "5s"),
            (variables::MAX_CONNECTIONS, "6"),
            (variables::MAX_REQUESTS, "7"),
            (variables::MAX_HEAD, "9Ki"),
            (variables::MAX_FIELDS, "10"),
            (variables::MEMORY_LIMIT, "8Mi"),
        ]);
        let seconds = Duration::from_secs;
        let patience = Patience {
            first_request: seconds(1),
            idle: seconds(2),
            body: seconds(3),
            unread: seconds(4),
            tcp_idle: seconds(5),
        };
        assert_eq!(Patience::from_env(&env), patience);
        let bounds = Bounds {
            connections: Some(6),
            requests: 7,
            head: 9 << 10,
            fields: 10,
            memory: Some(8 << 20),
        };
        assert_eq!(Bounds::from_env(&env), bounds);
        assert!(env.finish().is_ok());

        let bad = [
            (variables::IDLE_TIMEOUT, "0s"),
            (variables::MAX_CONNECTIONS, "0"),
            (variables::MAX_REQUESTS, "many"),
            (variables::MAX_HEAD, "1Ki"),
            (variables::MAX_FIELDS, "0"),
            (variables::MEMORY_LIMIT, "much"),
        ];
        let env = Env::from_pairs(bad);
        let _ = (Patience::from_env(&env), Bounds::from_env(&env));
        let error = env.finish().unwrap_err().to_string();
        for (name, _) in bad {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
