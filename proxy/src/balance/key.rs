//! What a request or a connection is hashed by, where its route says so.

use std::net::IpAddr;

use http::HeaderMap;

use crate::config::endpoints::{hash, ip_hash};
use crate::config::route::{HashOn, HashPolicy};

/// The hash of a client's address. Behind an outbound listener that is the app of this pod, so that all it sends to a
/// cluster goes to one endpoint, as with kube-proxy.
#[must_use]
pub fn of_client(client: IpAddr) -> u64 {
    ip_hash(client)
}

/// The hash of a request: that of every policy that applies to it, one after the other, up to a terminal one. `None`:
/// none applies.
#[must_use]
pub fn of_request(policies: &[HashPolicy], client: IpAddr, headers: &HeaderMap) -> Option<u64> {
    let mut all = None;
    for policy in policies {
        let of_one = match &policy.on {
            HashOn::SourceIp => Some(of_client(client)),
            HashOn::Header(name) => headers.get(name).map(|value| hash(value.as_bytes())),
        };
        if let Some(of_one) = of_one {
            // The order of the policies matters.
            all = Some(all.unwrap_or(0_u64).rotate_left(1) ^ of_one);
            if policy.terminal {
                break;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_combine_in_order_up_to_a_terminal_one_that_applies() {
        let on_header = |name: &'static str, terminal| HashPolicy {
            on: HashOn::Header(http::HeaderName::from_static(name)),
            terminal,
        };
        let on_source = HashPolicy {
            on: HashOn::SourceIp,
            terminal: false,
        };
        let client = IpAddr::from([10, 0, 0, 1]);
        let headers: HeaderMap = [("x-user", "ann"), ("x-lane", "blue")]
            .map(|(name, value)| {
                let value = http::HeaderValue::from_static(value);
                (http::HeaderName::from_static(name), value)
            })
            .into_iter()
            .collect();
        let of = |policies: &[HashPolicy]| of_request(policies, client, &headers);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[on_header("x-none", true)]), None);
        let user = of(&[on_header("x-user", false)]);
        assert_eq!(user, Some(hash(b"ann")));
        let source = of(std::slice::from_ref(&on_source));
        assert_eq!(source, Some(of_client(client)));
        let terminal = [on_header("x-user", true), on_source.clone()];
        assert_eq!(of(&terminal), user);
        let absent = [on_header("x-none", true), on_source.clone()];
        assert_eq!(of(&absent), source);
        let both = of(&[on_header("x-user", false), on_header("x-lane", false)]);
        let turned = of(&[on_header("x-lane", false), on_header("x-user", false)]);
        assert!(both != user && both != turned);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_that_it_is() {
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(of_client(mapped), of_client([10, 0, 0, 1].into()));
        assert_ne!(of_client(mapped), of_client([10, 0, 0, 2].into()));
    }
}
