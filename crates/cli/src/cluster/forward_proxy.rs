//! The proxy between this machine and the API server, if there is one: that of the kubeconfig (`proxy-url`), or what
//! `HTTPS_PROXY` names, unless `NO_PROXY` or the address says that there is none on the way.
//!
//! As kubectl has it: <https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config>.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
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
    // One that the kubeconfig names is meant, whatever the environment says.
    if named.any(|it| it.parse::<Uri>().is_ok_and(|it| it == *proxy)) {
        let except = env.text("NO_PROXY").or_else(|| env.text("no_proxy"));
        config.proxy_url = way(proxy, &config.cluster_url, except.unwrap_or_default());
    }
}

/// The proxy on the way to a server, of an environment that names one, and whom it is not for.
fn way(proxy: &Uri, server: &Uri, except: &str) -> Option<Uri> {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let local = address
        .parse()
        .is_ok_and(|address: IpAddr| address.is_loopback());
    let matcher = Matcher::builder().all(proxy.to_string()).no(except).build();
    if local || host == "localhost" || matcher.intercept(server).is_none() {
        return None;
    }
    // `proxy:3128` is one that speaks HTTP.
    match proxy.scheme() {
        None => format!("http://{proxy}").parse().ok(),
        Some(_) => Some(proxy.clone()),
    }
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
}
