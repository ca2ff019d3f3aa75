//! The load generator against the echo workload: what it counts, and when it ends.

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::app::serve::tests::Running;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    load: LoadArgs,
}

async fn load(url: &str, extra: &[&str], stop: impl Future<Output = ()>) -> Value {
    let args = [
        &["load", "--url", url, "--rate", "200", "--duration", "100ms"],
        extra,
    ]
    .concat();
    let args = Program::parse_from(args).load;
    generate(&args, stop, |_| Ok(()))
        .await
        .expect("ran")
        .summary()
}

#[tokio::test]
async fn every_protocol_carries_the_load_and_says_who_answered() {
    let app = Running::start(&[
        "--http",
        "0",
        "--grpc",
        "0",
        "--tcp-server-first",
        "0",
        "--version",
        "v2",
    ])
    .await;
    let rows = [
        ("http", "http", &[][..]),
        (
            "http",
            "http",
            &["--http2", "--method", "POST", "--body-size", "1000"][..],
        ),
        ("http", "http", &["--no-reuse"][..]),
        ("grpc", "grpc", &[][..]),
        ("tcp", "tcp-server-first", &["--server-first"][..]),
    ];
    for (scheme, port, extra) in rows {
        let summary = load(
            &format!("{scheme}://{}", app.address(port)),
            extra,
            std::future::pending(),
        )
        .await;
        assert_eq!(summary["sent"], 20, "{summary}");
        assert_eq!(summary["ok"], 20, "{summary}");
        assert_eq!(summary["versions"], json!({ "v2": 20 }), "{summary}");
        assert_eq!(summary["pods"], json!({ "pod-0": 20 }), "{summary}");
    }
}

#[tokio::test]
async fn failures_are_counted_by_reason_and_not_retried() {
    let app = Running::start(&["--http", "0", "--fail-probability", "1"]).await;
    let summary = load(
        &format!("http://{}", app.address("http")),
        &["--id-prefix", "f"],
        std::future::pending(),
    )
    .await;
    assert_eq!(summary["failures"], json!({ "status 503": 20 }));
    assert_eq!(summary["first_errors"].as_array().map(Vec::len), Some(10));
}

#[tokio::test]
async fn a_request_that_gets_no_answer_in_time_has_failed_and_its_latency_counts_from_when_it_was_due()
 {
    let app = Running::start(&["--http", "0", "--latency", "1m"]).await;
    let url = format!("http://{}", app.address("http"));
    let summary = load(
        &url,
        &["--timeout", "150ms", "--concurrency", "1"],
        std::future::pending(),
    )
    .await;
    assert_eq!(summary["failures"], json!({ "timeout": 20 }));
    let after = summary["first_errors"][0]["after_ms"].as_u64();
    assert!(after.is_some_and(|after| after >= 150), "{summary}");
}

#[tokio::test]
async fn a_stop_ends_it_early_with_a_summary() {
    let app = Running::start(&["--http", "0"]).await;
    let summary = load(
        &format!("http://{}", app.address("http")),
        &[],
        std::future::ready(()),
    )
    .await;
    assert_eq!(summary["sent"], 0);
    assert_eq!(summary["event"], "summary");
}

#[test]
fn a_rate_that_is_no_rate_is_refused() {
    for (text, expected) in [
        ("300", true),
        ("0.5", true),
        ("0", false),
        ("-1", false),
        ("NaN", false),
        ("inf", false),
    ] {
        assert_eq!(rate(text).is_ok(), expected, "{text}");
    }
}

#[tokio::test]
async fn progress_is_told_each_second_unless_only_the_summary_is_wanted() {
    let app = Running::start(&["--http", "0"]).await;
    let url = format!("http://{}", app.address("http"));
    for (extra, told) in [(&[][..], true), (&["--summary-only"], false)] {
        let args = [
            "load",
            "--url",
            &url,
            "--rate",
            "20",
            "--duration",
            "1500ms",
        ];
        let args = Program::parse_from([&args[..], extra].concat()).load;
        let mut lines = 0;
        let count = |_: &Value| {
            lines += 1;
            Ok(())
        };
        let report = generate(&args, std::future::pending(), count)
            .await
            .expect("ran");
        assert_eq!(report.summary()["ok"], 30);
        assert_eq!(lines > 0, told, "{extra:?}");
    }
}
