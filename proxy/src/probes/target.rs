//! Where an HTTP probe goes, and where an answer sends it on to.

use std::net::IpAddr;

use http::uri::Authority;

/// A place on the host of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    pub(super) port: u16,
    /// With its query.
    pub(super) path: String,
}

impl Target {
    /// Where a `Location` leads from here (RFC 3986, 5.2). Absent where that is another host, to which kubelet goes for nobody,
    /// or no place at all.
    pub(super) fn follow(&self, location: &str, app: IpAddr) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = location.split_once("://").filter(|(scheme, _)| {
            let mut characters = scheme.chars();
            characters.all(|it| it.is_ascii_alphanumeric())
        });
        let (tls, elsewhere) = match scheme {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, Some(rest)),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, Some(rest)),
            Some(_) => return None,
            None => (self.tls, location.strip_prefix("//")),
        };
        let Some(elsewhere) = elsewhere else {
            let path = self.resolve(location);
            return Some(Self {
                path,
                ..self.clone()
            });
        };
        let end = elsewhere.find(['/', '?']).unwrap_or(elsewhere.len());
        let (authority, path) = elsewhere.split_at(end);
        let authority: Authority = authority.parse().ok()?;
        let host = authority.host().trim_matches(['[', ']']);
        let default = if tls { 443 } else { 80 };
        (host.parse() == Ok(app)).then(|| Self {
            tls,
            port: authority.port_u16().unwrap_or(default),
            path: rooted(path),
        })
    }

    fn resolve(&self, location: &str) -> String {
        if location.starts_with('/') {
            return location.to_owned();
        }
        let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
        if location.is_empty() || location.starts_with('?') {
            return format!("{path}{location}");
        }
        let end = location.find('?').unwrap_or(location.len());
        let (relative, query) = location.split_at(end);
        let (folder, _) = path.rsplit_once('/').unwrap_or_default();
        let mut steps: Vec<_> = folder.split('/').skip(1).collect();
        let mut last = "";
        for step in relative.split('/') {
            steps.push(step);
            last = step;
            if step == "." || step == ".." {
                steps.pop();
                last = "";
            }
            if step == ".." {
                steps.pop();
            }
        }
        let end = if last.is_empty() && !relative.ends_with('/') && !steps.is_empty() {
            "/"
        } else {
            ""
        };
        format!("/{}{end}{query}", steps.join("/"))
    }
}

/// A path from the root.
pub(super) fn rooted(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn from(path: &str) -> Target {
        Target {
            tls: false,
            port: 8080,
            path: path.to_owned(),
        }
    }

    #[test]
    fn a_location_leads_on_within_the_host_and_not_beyond() {
        let app = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
        let here = |path: &str| Some(from(path));
        let there = |tls, port, path: &str| {
            let path = path.to_owned();
            Some(Target { tls, port, path })
        };
        for (location, expected) in [
            ("/ok", here("/ok")),
            ("/ok?a=http://b#c", here("/ok?a=http://b")),
            ("ok", here("/deep/ok")),
            ("./ok", here("/deep/ok")),
            ("../ok?a", here("/ok?a")),
            ("../../ok", here("/ok")),
            ("..", here("/")),
            (".", here("/deep/")),
            ("a/", here("/deep/a/")),
            ("?b", here("/deep/page?b")),
            ("", here("/deep/page")),
            ("http://10.1.2.3/ok", there(false, 80, "/ok")),
            ("https://10.1.2.3", there(true, 443, "/")),
            ("HTTPS://10.1.2.3:8443?a", there(true, 8443, "/?a")),
            ("//10.1.2.3:81/ok", there(false, 81, "/ok")),
            ("http://10.1.2.4/ok", None),
            ("https://example.com/login", None),
            ("ftp://10.1.2.3/ok", None),
            ("http://a b/", None),
        ] {
            let to = from("/deep/page?a").follow(location, app);
            assert_eq!(to, expected, "{location}");
        }
        let app = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let to = from("/").follow("http://[::1]:81/ok", app);
        assert_eq!(to, there(false, 81, "/ok"));
    }
}
