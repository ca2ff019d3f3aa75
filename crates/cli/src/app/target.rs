//! Where a client goes: `http://`, `grpc://`, `tcp://` and `tls://` URLs.

use http::Uri;

use crate::error::CliError;

/// How to speak to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Grpc,
    Tcp,
    Tls,
}

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) scheme: Scheme,
    /// Name or address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As written, for `Host` and `:authority`.
    pub(crate) authority: String,
    pub(crate) path_and_query: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, CliError> {
        let bad = |problem: &str| CliError::Url {
            url: url.to_owned(),
            problem: problem.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| bad("it cannot be read"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, Some(80)),
            Some("grpc") => (Scheme::Grpc, None),
            Some("tcp") => (Scheme::Tcp, None),
            Some("tls") => (Scheme::Tls, None),
            _ => return Err(bad("its scheme is not one of http, grpc, tcp and tls")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        let port = authority
            .port_u16()
            .or(default_port)
            .ok_or_else(|| bad("it names no port"))?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        let path_and_query = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        Ok(Self {
            url: url.to_owned(),
            scheme,
            host,
            port,
            authority: authority.as_str().to_owned(),
            path_and_query,
        })
    }

    /// As an `http` URI, which is what HTTP/2 requests carry.
    pub(crate) fn http_uri(&self) -> Result<Uri, CliError> {
        let text = format!("http://{}{}", self.authority, self.path_and_query);
        text.parse().map_err(|_| CliError::Url {
            url: self.url.clone(),
            problem: "it cannot be read".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let rows = [
            ("http://web/a?b=c", Scheme::Http, "web", 80, "/a?b=c"),
            ("http://[::1]:8080", Scheme::Http, "::1", 8080, "/"),
            ("grpc://ledger:9000", Scheme::Grpc, "ledger", 9000, "/"),
            ("tls://192.0.2.1:443", Scheme::Tls, "192.0.2.1", 443, "/"),
        ];
        for (url, scheme, host, port, path) in rows {
            let target = Target::parse(url).expect(url);
            let parts = (
                target.scheme,
                target.host.as_str(),
                target.port,
                target.path_and_query.as_str(),
            );
            assert_eq!(parts, (scheme, host, port, path), "{url}");
        }
    }

    #[test]
    fn what_is_no_target_is_refused_with_the_reason() {
        let rows = [
            ("web:80", "scheme"),
            ("https://web/", "scheme"),
            ("tcp://web", "no port"),
            ("http://", "cannot be read"),
            ("", "cannot be read"),
        ];
        for (url, problem) in rows {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }
}
