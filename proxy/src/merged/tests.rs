//! What Prometheus gets of both parts, and what it gets when the app's cannot be passed on.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tulle_runtime::reasons::explained;
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::probes::Probes;

const APP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MOST: usize = 64 << 10;
const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What Prometheus says, with a kind that cannot be merged.
const PROMETHEUS: &str = "application/vnd.google.protobuf;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,\
    text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// An app that answers each request so, and tells what it was asked.
async fn app(answer: impl Into<Vec<u8>>) -> (u16, mpsc::UnboundedReceiver<String>) {
    let (listener, answer) = (TcpListener::bind((APP, 0)).await.unwrap(), answer.into());
    let port = listener.local_addr().unwrap().port();
    let (told, asked) = mpsc::unbounded_channel();
    let serving = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let _ = told.send(String::from_utf8(head).unwrap());
            if answer.is_empty() {
                // It keeps its client waiting.
                let _ = stream.read_u8().await;
            }
            let _ = stream.write_all(&answer).await;
        }
    };
    Tasks::new().spawn("app", serving);
    (port, asked)
}

fn ok(content_type: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n{body}")
}

/// A sidecar that has counted three things.
struct Sidecar {
    registry: Registry,
    merged: Merged,
    app: AppProbes,
}

impl Sidecar {
    fn of(port: u16) -> Self {
        let source = format!(r#"{{"port":{port},"path":"/metrics?all=1","scheme":"http"}}"#);
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("tulle");
        let things = Counter::<u64>::default();
        own.register("things", "Things", things.clone());
        things.inc_by(3);
        let failures = Failures::register(own);
        Self {
            merged: Merged::new(Some(source.parse().unwrap()), failures, MOST),
            registry,
            app: AppProbes {
                probes: Probes::default(),
                address: APP,
                settings: Arc::default(),
            },
        }
    }

    async fn ask(&self, headers: &[(&str, &str)]) -> Answer {
        let pairs = headers.iter().map(|(name, value)| {
            let name = HeaderName::try_from(*name).unwrap();
            (name, HeaderValue::try_from(*value).unwrap())
        });
        self.merged
            .answer(&self.registry, &pairs.collect(), &self.app)
            .await
    }

    async fn scrape(&self, headers: &[(&str, &str)]) -> (String, String) {
        let answer = self.ask(headers).await;
        assert_eq!(answer.status(), 200);
        let content_type = answer.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (content_type, String::from_utf8(body.to_vec()).unwrap())
    }
}

const OF_APP: &str =
    "# TYPE shop_orders counter\nshop_orders_total{kind=\"a \\\"b\\\"\"} 7 # {id=\"1\"} 1.0\n";

#[tokio::test]
async fn both_parts_are_of_the_format_that_the_app_has() {
    let open = format!("{OF_APP}# EOF\n");
    let text = "# HELP shop_orders_total Orders\n# TYPE shop_orders_total counter\n\nshop_orders_total{kind=\"a\"} 7 1700000000000";
    let own_open =
        "# HELP tulle_things Things.\n# TYPE tulle_things counter\ntulle_things_total 3\n";
    let own_text = "# HELP tulle_things_total Things.\n# TYPE tulle_things_total counter\ntulle_things_total 3\n";
    for (name, content_type, body, expected, own, theirs, end) in [
        (
            "OpenMetrics",
            "application/openmetrics-text; version=1.0.0",
            open.as_str(),
            OPEN,
            own_open,
            OF_APP,
            true,
        ),
        (
            "text",
            "text/plain; version=0.0.4",
            text,
            TEXT,
            own_text,
            text,
            false,
        ),
        (
            "text that nobody calls so",
            "text/html",
            text,
            TEXT,
            own_text,
            text,
            false,
        ),
        ("nothing", "text/plain", "", TEXT, own_text, "", false),
    ] {
        let (port, _) = app(ok(content_type, body)).await;
        let (content_type, answer) = Sidecar::of(port).scrape(&[("accept", PROMETHEUS)]).await;
        assert_eq!(content_type, expected, "{name}");
        assert!(answer.starts_with(own), "{name}: {answer}");
        assert_eq!(
            answer.ends_with(&format!("\n{theirs}# EOF\n")),
            end,
            "{name}: {answer}"
        );
        assert!(
            answer.contains(theirs) && answer.matches("# EOF").count() == usize::from(end),
            "{name}: {answer}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_passed_on_is_left_out_and_counted_by_reason() {
    let plain = |body: &str| ok("text/plain", body);
    let large = plain(&format!("# {}\n", "x".repeat(MOST)));
    let closed = TcpListener::bind((APP, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let rows: [(&str, Failure, String); 12] = [
        ("a page", Failure::Malformed, plain("<html>\n")),
        ("half a line", Failure::Malformed, plain("a_total")),
        (
            "a NUL",
            Failure::Malformed,
            plain("a 1\n").replace("a 1", "a{b=\"\u{0}\"} 1"),
        ),
        (
            "OpenMetrics without an end",
            Failure::Malformed,
            ok("application/openmetrics-text", OF_APP),
        ),
        (
            "a name of ours",
            Failure::Clash,
            plain("tulle_things_total 1\n"),
        ),
        (
            "a family of ours",
            Failure::Clash,
            plain("# TYPE tulle_things_total gauge\n"),
        ),
        (
            "an error",
            Failure::Status,
            "HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\na 1\n".to_owned(),
        ),
        (
            "a redirect",
            Failure::Status,
            "HTTP/1.1 302 Found\r\nLocation: /m\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
        ("another protocol", Failure::Http, "220 mail\r\n".to_owned()),
        (
            "an end that comes early",
            Failure::Http,
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na 1\n".to_owned(),
        ),
        (
            "compressed",
            Failure::Format,
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
        ("too much", Failure::Size, large),
    ];
    let check = async |name: &str, failure: Failure, port: u16, headers: &[(&str, &str)]| {
        let (content_type, answer) = Sidecar::of(port).scrape(headers).await;
        assert_eq!(content_type, OPEN, "{name}");
        let counted = format!(
            "tulle_app_metrics_failures_total{{reason=\"{}\"}} 1\n",
            failure.name()
        );
        assert!(answer.contains(&counted), "{name}: {answer}");
        assert!(
            answer.contains("tulle_things_total 3\n") && answer.ends_with("\n# EOF\n"),
            "{name}: {answer}"
        );
    };
    for (name, failure, answer) in rows {
        let (port, mut asked) = app(answer).await;
        check(name, failure, port, &[]).await;
        assert!(
            asked.recv().await.is_some() && asked.try_recv().is_err(),
            "{name}: asked once"
        );
    }
    check("nobody there", Failure::Connect, closed, &[]).await;
    let (port, _) = app(plain("a 1\n")).await;
    let open = ("accept", "application/openmetrics-text");
    check(
        "text, which its client does not read",
        Failure::Format,
        port,
        &[open],
    )
    .await;
    let (port, _) = app("").await;
    let soon = (SCRAPE_TIMEOUT, "0.2");
    check(
        "no answer while its client waits",
        Failure::Timeout,
        port,
        &[soon],
    )
    .await;
}

#[tokio::test]
async fn the_app_is_asked_as_prometheus_would_ask_it() {
    let (port, mut asked) = app(ok("text/plain", "a 1\n")).await;
    let sidecar = Sidecar::of(port);
    let headers = [
        (ACCEPT.as_str(), PROMETHEUS),
        (AUTHORIZATION.as_str(), "Bearer sesame"),
        (SCRAPE_TIMEOUT, "10"),
        ("cookie", "mine"),
        ("accept-encoding", "gzip"),
    ];
    let (_, answer) = sidecar.scrape(&headers).await;
    assert!(answer.ends_with("\na 1\n"), "{answer}");
    let head = asked.recv().await.unwrap().to_ascii_lowercase();
    for line in [
        "get /metrics?all=1 http/1.1\r\n",
        &format!("\r\nhost: 127.0.0.1:{port}\r\n"),
        "\r\naccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n",
        "\r\nauthorization: bearer sesame\r\n",
        "\r\nx-prometheus-scrape-timeout-seconds: 9\r\n",
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(
        !head.contains("cookie") && !head.contains("encoding"),
        "{head}"
    );
}

#[tokio::test]
async fn who_does_not_take_an_answer_keeps_large_ones_from_others_and_no_more() {
    let large = format!("{}\n", "a_b 1\n".repeat(10_000));
    let (port, _) = app(ok("text/plain", large.trim())).await;
    let sidecar = Sidecar::of(port);
    let soon = [(SCRAPE_TIMEOUT, "0.3")];
    let (first, second) = (sidecar.ask(&[]).await, sidecar.ask(&[]).await);
    let (_, third) = sidecar.scrape(&soon).await;
    assert!(third.contains("{reason=\"busy\"} 1\n"), "{third}");
    drop((first, second));
    let (_, fourth) = sidecar.scrape(&soon).await;
    assert!(fourth.contains("\na_b 1\n"), "{fourth}");
}

#[test]
fn only_what_can_be_asked_for_is_a_source() {
    let read = |text: &str| {
        text.parse::<Source>()
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let good = r#"{"port":9090,"path":"/metrics","scheme":"https"}"#;
    assert_eq!(read(good), Ok(()));
    for (bad, told) in [
        ("9090", "not where metrics are"),
        (
            r#"{"port":99999,"path":"/","scheme":"http"}"#,
            "not where metrics are",
        ),
        (
            r#"{"port":9090,"path":"metrics","scheme":"http"}"#,
            "no path",
        ),
        (r#"{"port":9090,"path":"/a b","scheme":"http"}"#, "no path"),
        (
            r#"{"port":9090,"path":"/","scheme":"ftp"}"#,
            "neither http nor https",
        ),
    ] {
        let error = read(bad).unwrap_err();
        assert!(error.contains(told), "{bad}: {error}");
    }
}

#[test]
fn readme_explains_every_reason() {
    let readme = include_str!("../../../README.md");
    let said = explained(readme, "\n`tulle_app_metrics_failures_total{reason}`").expect("a table");
    assert_eq!(
        said,
        Failure::ALL.iter().map(|failure| failure.name()).collect()
    );
}
