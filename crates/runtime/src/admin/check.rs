//! Which requests are answered at all.

use std::net::{IpAddr, Ipv6Addr};

use http::request::Parts;
use http::{Method, Version, header};

use super::refusals::Reason;

/// The reason, and what the client is told of it.
type Refused = (Reason, &'static str);

/// Why a request is refused, or `Ok`.
pub(super) fn admit(head: &Parts, hosts: &[String]) -> Result<(), Refused> {
    let mut named = head.headers.get_all(header::HOST).into_iter();
    match (named.next(), named.next()) {
        (Some(host), None) => {
            let host = host
                .to_str()
                .map_err(|_| (Reason::Host, "malformed Host header\n"))?;
            check_host(host, hosts)?;
        }
        (Some(_), Some(_)) => return Err((Reason::Host, "more than one Host header\n")),
        // Browsers always send one; HTTP/1.0 probes may not.
        (None, _) if head.version == Version::HTTP_10 => {}
        (None, _) => return Err((Reason::Host, "no Host header\n")),
    }
    if let Some(authority) = head.uri.authority() {
        check_host(authority.as_str(), hosts)?;
    }
    let from_a_browser =
        head.headers.contains_key(header::ORIGIN) || head.headers.contains_key("sec-fetch-site");
    if head.method == Method::POST && from_a_browser {
        let why = "this is not for browsers: POST it with a command-line client\n";
        return Err((Reason::Browser, why));
    }
    Ok(())
}

fn check_host(host: &str, hosts: &[String]) -> Result<(), Refused> {
    let name = without_port(host);
    let is_ip = name.parse::<IpAddr>().is_ok()
        || name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    if is_ip
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    {
        return Ok(());
    }
    let why = "Host is not an IP address or localhost: ask by address\n";
    Err((Reason::Host, why))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            // An IPv6 address has its port behind the bracket.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let allowed = ["tulle-control.tulle-system.svc".to_owned()];
        let table = [
            ("127.0.0.1", true),
            ("127.0.0.1:15000", true),
            ("10.1.2.3:15020", true),
            ("[::1]:15000", true),
            ("[::1]", true),
            ("localhost:15000", true),
            ("LOCALHOST", true),
            ("tulle-control.tulle-system.svc:15014", true),
            ("evil.example", false),
            ("evil.example:15000", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("user@127.0.0.1", false),
            ("", false),
            (":15000", false),
            ("[::1", false),
        ];
        for (host, expected) in table {
            assert_eq!(check_host(host, &allowed).is_ok(), expected, "{host:?}");
        }
    }
}
