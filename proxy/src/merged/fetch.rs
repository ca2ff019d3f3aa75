//! Asks the app for its metrics, once: no redirect is followed, and no more is read than may be passed on.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::accept::Wanted;
use super::text::Format;
use super::{Failed, Failure, SCRAPE_TIMEOUT, Source};
use crate::admin::AppProbes;
use crate::net::{Reach, dial};
use crate::probes::{drive, unverified};

/// Longest head of the app's answer.
const MAX_HEAD: usize = 64 * 1024;

/// What is asked, and for whom.
pub(super) struct Asked<'a> {
    pub(super) source: &'a Source,
    pub(super) headers: &'a HeaderMap,
    pub(super) wanted: &'a Wanted,
    pub(super) patience: Duration,
}

/// What the app answered.
pub(super) struct Fetched {
    pub(super) format: Format,
    /// Whether names may be quoted.
    pub(super) quoted: bool,
    /// The app's own, where it says something that ours does not.
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Vec<u8>,
}

impl Asked<'_> {
    pub(super) async fn of(&self, app: &AppProbes, most: usize) -> Result<Fetched, Failed> {
        let address = SocketAddr::new(app.address, self.source.port);
        let request = self.request(address);
        let tcp = dial(&app.settings, address, Reach::App).await;
        let tcp = tcp.map_err(|error| (Failure::Connect, format!("{address}: {error}")))?;
        if !self.source.https {
            return self.exchange(tcp, request, most).await;
        }
        let connector = TlsConnector::from(unverified::config());
        let tls = connector.connect(unverified::name(app.address), tcp).await;
        let tls = tls.map_err(|error| (Failure::Http, format!("TLS with {address}: {error}")))?;
        self.exchange(tls, request, most).await
    }

    fn request(&self, address: SocketAddr) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.source.target.clone().into();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::try_from(address.to_string()) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static("tulle-proxy"));
        headers.insert(ACCEPT, self.wanted.accept.clone());
        if let Ok(left) = HeaderValue::try_from(self.patience.as_secs_f64().to_string()) {
            headers.insert(SCRAPE_TIMEOUT, left);
        }
        // So that an app which asks for a password still does.
        if let Some(credentials) = self.headers.get(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, credentials.clone());
        }
        request
    }

    async fn exchange<I>(
        &self,
        io: I,
        request: Request<Empty<Bytes>>,
        most: usize,
    ) -> Result<Fetched, Failed>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: hyper::Error| (Failure::Http, error.to_string());
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
        let answering = async {
            let response = sender.send_request(request).await?;
            Ok(self.read(response, most).await)
        };
        drive(answering, connection).await.map_err(failed)?
    }

    async fn read(&self, response: Response<Incoming>, most: usize) -> Result<Fetched, Failed> {
        let (head, mut incoming) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err((Failure::Status, format!("the app answered {}", head.status)));
        }
        let said = |name| {
            head.headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        if let Some(encoding) =
            said(CONTENT_ENCODING).filter(|it| !it.eq_ignore_ascii_case("identity"))
        {
            return Err((
                Failure::Format,
                format!("nobody asked for encoding {encoding:?}"),
            ));
        }
        let content_type = said(CONTENT_TYPE).unwrap_or_default();
        let format = Format::of(content_type);
        if !self.wanted.takes(format) {
            return Err((
                Failure::Format,
                format!("nobody asked for {content_type:?}"),
            ));
        }
        let quoted = content_type.contains("escaping=allow-utf-8");
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| (Failure::Http, error.to_string()))?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            if body.len() + data.len() > most {
                return Err((Failure::Size, format!("more than {most} bytes")));
            }
            body.extend_from_slice(data);
        }
        let content_type = head.headers.get(CONTENT_TYPE).filter(|_| quoted);
        Ok(Fetched {
            format,
            quoted,
            content_type: content_type.cloned(),
            body,
        })
    }
}
