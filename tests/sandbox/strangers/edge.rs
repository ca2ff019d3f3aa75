//! The trust edge: what a client outside the mesh says of itself, in heads and trailers of both versions.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tulle_runtime::names::{containers, labels::INJECT};
use tulle_tests::{Arena, Mesh, app, eventually};

use super::DEADLINE;
use crate::place::Place;

/// What only a proxy may say, and how an app might read as the same.
const OF_PROXIES: [&str; 6] = [
    "x-forwarded-client-cert",
    "x_forwarded_client_cert",
    "x-envoy-internal",
    "x_envoy_internal",
    "x-tulle-failed-hop",
    "x_tulle_unprocessed",
];
/// What else has no place in a trailer.
const OF_HEADS: [&str; 5] = [
    "host",
    "cookie",
    "expect",
    "x-forwarded-for",
    "x-request-id",
];
/// What it says beside them, which is the app's business.
const OWN: &str = "x_my_own";

/// What a request was answered: its status, and the body.
type Answer = (u16, String);

/// A client outside the mesh.
struct Stranger {
    place: Place,
    web: SocketAddr,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Http1,
    Http2,
}

impl Stranger {
    async fn sends(&self, fields: &[&str], trailers: &[&str]) -> anyhow::Result<Answer> {
        match self.version {
            Version::Http1 => self.http1(fields, trailers).await,
            Version::Http2 => self.http2(fields, trailers).await,
        }
    }

    async fn http1(&self, fields: &[&str], trailers: &[&str]) -> anyhow::Result<Answer> {
        let lines = |names: &[&str]| -> String {
            names
                .iter()
                .map(|name| format!("{name}: forged\r\n"))
                .collect()
        };
        let (fields, declared) = (lines(fields), trailers.join(", "));
        let request = format!(
            "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
             trailer: {declared}\r\n{fields}\r\n1\r\nx\r\n0\r\n{}\r\n",
            lines(trailers)
        );
        let mut tcp = self.place.connect(self.web).await?;
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        let status = answer.split(' ').nth(1).context("no status")?.parse()?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok((status, body.to_owned()))
    }

    async fn http2(&self, fields: &[&str], trailers: &[&str]) -> anyhow::Result<Answer> {
        let forged = |names: &[&str]| -> anyhow::Result<HeaderMap> {
            let value = HeaderValue::from_static("forged");
            let field = |name: &&str| Ok((HeaderName::try_from(*name)?, value.clone()));
            names.iter().map(field).collect()
        };
        let tcp = self.place.connect(self.web).await?;
        let (mut sender, connection) = h2::client::handshake(tcp).await?;
        let mut running = JoinSet::new();
        running.spawn(connection);
        let mut request = http::Request::post("http://web/").body(())?;
        request.headers_mut().extend(forged(fields)?);
        let (answer, mut body) = sender.send_request(request, false)?;
        body.send_data(Bytes::from_static(b"x"), false)?;
        body.send_trailers(forged(trailers)?)?;
        let (head, mut body) = answer.await?.into_parts();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            text.extend_from_slice(&data?);
        }
        running.abort_all();
        Ok((head.status.as_u16(), String::from_utf8(text)?))
    }

    /// What of these names the app gets in its head, and in its trailers.
    async fn passes(&self, fields: &[&str], trailers: &[&str]) -> anyhow::Result<Value> {
        let (status, body) = self.sends(fields, trailers).await?;
        ensure!(status == 200, "{:?}: {status} {body}", self.version);
        serde_json::from_str(&body).with_context(|| body.clone())
    }
}

pub(super) async fn row_12_nobody_is_told_what_a_stranger_says_in_the_name_of_a_proxy(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let client = app("client").annotate(INJECT, "disabled");
    // A port of any protocol, so that both versions are served.
    let web = app("web").serve("--http", 8080, "web");
    let arena = mesh.apply("edge", web + client).await?;
    let web = SocketAddr::from((arena.pod("web")?.ips.v4, 8080));
    for version in [Version::Http1, Version::Http2] {
        let place = Place::of(&arena, "client")?;
        let stranger = Stranger {
            place,
            web,
            version,
        };
        let said = [&OF_PROXIES[..], &[OWN]].concat();
        let got = stranger.passes(&said, &["x-sum"]).await?;
        for name in OF_PROXIES {
            ensure!(got["headers"][name].is_null(), "{version:?} {name}: {got}");
        }
        ensure!(got["headers"][OWN] == "forged", "{got}");
        ensure!(got["trailers"]["x-sum"] == "forged", "{got}");
        for name in OF_PROXIES.iter().chain(&OF_HEADS) {
            let (status, why) = stranger.sends(&[], &["x-sum", name]).await?;
            ensure!(status == 400, "{version:?} {name}: {status} {why}");
            ensure!(why == "a trailer that belongs into the head", "{why}");
        }
    }
    eventually(DEADLINE, async || {
        let log = arena.access_log("web")?;
        let refused = log.iter().filter(|line| line["response_code"] == 400);
        let lines = refused.count();
        let expected = 2 * (OF_PROXIES.len() + OF_HEADS.len());
        ensure!(lines == expected, "{lines} lines of {expected}: {log:?}");
        Ok(())
    })
    .await?;
    malformed(&arena, web).await
}

/// Streams that HTTP/2's library resets are counted, and a line says whose they are.
async fn malformed(arena: &Arena<'_>, web: SocketAddr) -> anyhow::Result<()> {
    const STREAMS: u8 = 20;
    let mut tcp = Place::of(arena, "client")?.connect(web).await?;
    let own = tcp.local_addr()?;
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await?;
    // GET http://a/, with a field that belongs to a hop.
    let head = b"\x82\x86\x84\x01\x01a\0\x0aconnection\x01x";
    for stream in 0..STREAMS {
        let length = u8::try_from(head.len())?;
        tcp.write_all(&[0, 0, length, 1, 5, 0, 0, 0, 1 + 2 * stream])
            .await?;
        tcp.write_all(head).await?;
    }
    let mut resets = 0;
    while resets < STREAMS {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tcp.read_exact(&mut vec![0; usize::try_from(length)?])
            .await?;
        match head[3] {
            1 => bail!("a malformed request was answered"),
            3 => resets += 1,
            _ => {}
        }
    }
    eventually(DEADLINE, async || {
        let labels = [("direction", "inbound")];
        let metrics = arena.metrics("web").await?;
        let counted = metrics.sum("tulle_downstream_streams_malformed_total", &labels);
        ensure!(counted == f64::from(STREAMS), "{counted} are counted");
        let log = arena.logs("web", Some(containers::PROXY))?;
        let lines = log.lines().filter(|line| line.contains("malformed HTTP/2"));
        let lines: Vec<_> = lines.collect();
        let named = lines.iter().all(|line| line.contains(&own.to_string()));
        ensure!(named && (1..=10).contains(&lines.len()), "{own}: {lines:?}");
        Ok(())
    })
    .await
}
