//! The proxy between this machine and the API server, if there is one: that of the kubeconfig (`proxy-url`), or what
//! `HTTPS_PROXY` names, unless `NO_PROXY` or the address says that there is none on the way.
//!
//! As kubectl has it: <https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config>.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;
use kube::Config;
use tulle_runtime::env::Env;

/// Where kube takes it from when the kubeconfig names none.
const VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// Takes a proxy of the environment away where it is not meant for the API server.
pub(super) fn settle(config: &mut Config) {
    let Some(proxy) = &config.proxy_url else {
        return;
    };
    let env = Env::process();
    let mut named = VARIABLES.iter().filter_map(|name| env.text(name));
    // Another, which the kubeconfig names, is meant whatever the environment says.
    if named.any(|it| it.parse::<Uri>().is_ok_and(|it| it == *proxy)) {
        let except = env.text("NO_PROXY").or_else(|| env.text("no_proxy"));
        config.proxy_url = way(proxy, &config.cluster_url, except.unwrap_or_default());
    }
}

/// The proxy on the way to a server, of an environment that names one, and whom it is not for.
fn way(proxy: &Uri, server: &Uri, except: &str) -> Option<Uri> {
    let host = server.host().unwrap_or_default().to_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address: Result<IpAddr, _> = host.parse();
    let local = host == "localhost" || address.is_ok_and(|it| it.is_loopback());
    let plain = server.scheme_str() == Some("http");
    let port = server.port_u16().unwrap_or(if plain { 80 } else { 443 });
    let mut entries = except.split(',').map(|it| it.trim().to_lowercase());
    if local || entries.any(|it| excepts(&it, host, port)) {
        return None;
    }
    // `proxy:3128` is one that speaks HTTP.
    match proxy.scheme() {
        None => format!("http://{proxy}").parse().ok(),
        Some(_) => Some(proxy.clone()),
    }
}

/// Whether an entry of `NO_PROXY` is about a server: `*`, a network, or an address or a domain, which may have a port behind it.
fn excepts(entry: &str, host: &str, port: u16) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    if let Ok(network) = entry.parse::<IpNet>() {
        return address.is_some_and(|it| network.contains(&it));
    }
    let (name, only) = match entry.rsplit_once(':') {
        // The colons of an IPv6 address are its own.
        Some((name, only)) if entry.parse::<IpAddr>().is_err() => (name, Some(only)),
        _ => (entry, None),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_it = match name.parse::<IpAddr>() {
        Ok(theirs) => address == Some(theirs),
        Err(_) => address.is_none() && is_of(host, name),
    };
    entry == "*" || (is_it && only.is_none_or(|it| it.parse() == Ok(port)))
}

/// Whether a host is of a domain: `example.com` is itself and what is below it, `.example.com` and `*.example.com` that alone.
fn is_of(host: &str, domain: &str) -> bool {
    let below = domain.strip_prefix('*').unwrap_or(domain);
    let (domain, itself) = match below.strip_prefix('.') {
        Some(domain) => (domain, false),
        None => (domain, true),
    };
    let rest = host.strip_suffix(domain);
    rest.is_some_and(|it| it.ends_with('.') || (itself && it.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_of_the_environment_is_for_servers_that_are_not_excepted() {
        let through = "http://proxy.corp:3128/";
        for (proxy, server, except, expected) in [
            (through, "https://api.example.com:6443", "", Some(through)),
            (
                "proxy.corp:3128",
                "https://api.example.com",
                "",
                Some(through),
            ),
            (
                "socks5://proxy.corp:1080/",
                "https://api.example.com",
                "",
                Some("socks5://proxy.corp:1080/"),
            ),
            (
                through,
                "https://api.example.com",
                "other.com, example.com",
                None,
            ),
            (
                through,
                "https://api.example.com",
                "example.org",
                Some(through),
            ),
            (through, "https://10.1.2.3:6443", "10.0.0.0/8", None),
            (
                through,
                "https://10.1.2.3:6443",
                "192.168.0.0/16",
                Some(through),
            ),
            (through, "https://api.example.com", "*", None),
            // As of clusters on this machine.
            (through, "https://127.0.0.1:6443", "", None),
            (through, "https://localhost:6443", "", None),
            (through, "https://[::1]:6443", "", None),
        ] {
            let uri = |text: &str| text.parse::<Uri>().expect("a URI");
            let found = way(&uri(proxy), &uri(server), except);
            assert_eq!(found, expected.map(uri), "{proxy} {server} {except}");
        }
    }

    #[test]
    fn servers_are_excepted_as_go_reads_it() {
        let named = "https://api.corp.example:6443";
        for (server, except, excepted) in [
            (named, "*.corp.example", true),
            (named, ".corp.example", true),
            (named, "corp.example", true),
            (named, "API.Corp.Example", true),
            (named, "rp.example", false),
            (named, "*.api.corp.example", false),
            (named, ".api.corp.example", false),
            (named, "api.corp.example:6443", true),
            (named, "*.example:6443", true),
            (named, "api.corp.example:443", false),
            ("https://api.corp.example", "api.corp.example:443", true),
            ("http://api.corp.example", "api.corp.example:443", false),
            ("https://10.1.2.3:6443", "10.1.2.3:6443", true),
            ("https://10.1.2.3:6443", "10.1.2.3", true),
            ("https://10.1.2.3:6443", "10.1.2.3:443", false),
            ("https://10.1.2.3:6443", "2.3", false),
            ("https://10.1.2.3:6443", ", x.example, *", true),
            ("https://[fd00::3]:6443", "fd00::3", true),
            ("https://[fd00::3]:6443", "[fd00::3]:6443", true),
            ("https://[fd00::3]:6443", "[fd00::3]:443", false),
            ("https://[fd00::3]:6443", "fd00::/64", true),
            ("https://[fd00::3]:6443", "fd01::/64", false),
            (named, ",", false),
            (named, ":6443", false),
        ] {
            let uri = |text: &str| text.parse::<Uri>().expect("a URI");
            let found = way(&uri("http://proxy.corp:3128/"), &uri(server), except);
            assert_eq!(found.is_none(), excepted, "{server} {except}");
        }
    }
}
