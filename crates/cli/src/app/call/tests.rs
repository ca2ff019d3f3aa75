//! The client against the echo workload, and against nobody.

use clap::Parser;

use super::*;
use crate::app::serve::tests::Running;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    call: CallArgs,
}

async fn reply(args: &[&str]) -> Result<Reply, String> {
    let args = Program::parse_from([&["call"], args].concat()).call;
    let target = Arc::new(Target::parse(&args.url).expect("a URL"));
    call(&args, &target)
        .await
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn http_answers_are_shown_with_status_headers_and_body() {
    let app = Running::start(&["--http", "0"]).await;
    let url = format!("http://{}/x", app.address("http"));
    for (extra, version) in [(&[][..], "HTTP/1.1"), (&["--http2"][..], "HTTP/2.0")] {
        let args = [&[url.as_str(), "--data", "hello", "-H", "x-user:me"], extra].concat();
        let reply = reply(&args).await.expect("answered");
        assert!(
            reply.success && reply.text.starts_with(&format!("{version} 200 OK\n")),
            "{}",
            reply.text
        );
        let body = &reply.json["body"];
        assert_eq!(body["protocol"], version);
        assert_eq!(
            (&body["method"], &body["bodyLength"]),
            (&json!("POST"), &json!(5))
        );
        assert_eq!(body["headers"]["x-user"], "me");
    }
}

#[tokio::test]
async fn a_failing_status_is_no_success() {
    let app = Running::start(&["--http", "0", "--grpc", "0", "--fail-probability", "1"]).await;
    let http = reply(&[&format!("http://{}/", app.address("http"))])
        .await
        .expect("answered");
    assert!(!http.success && http.json["status"] == 503);
    let grpc = reply(&[&format!("grpc://{}/", app.address("grpc"))])
        .await
        .expect("answered");
    assert!(
        !grpc.success && grpc.text.starts_with("gRPC Unavailable (14)"),
        "{}",
        grpc.text
    );
}

#[tokio::test]
async fn grpc_and_tcp_are_spoken_too() {
    let app = Running::start(&["--grpc", "0", "--tcp", "0", "--name", "ledger"]).await;
    let grpc = reply(&[&format!("grpc://{}", app.address("grpc"))])
        .await
        .expect("answered");
    assert_eq!(
        (&grpc.json["name"], &grpc.json["pod"]),
        (&json!("ledger"), &json!("pod-0"))
    );
    let tcp = reply(&[&format!("tcp://{}", app.address("tcp")), "--data", "hi"])
        .await
        .expect("answered");
    assert_eq!(tcp.text, "hi");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_reason() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound");
    for scheme in ["http", "tcp", "tls"] {
        let error = reply(&[&format!("{scheme}://{free}")])
            .await
            .expect_err("nobody listens");
        assert!(
            error.starts_with("no answer from ") && error.contains("refused"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_server_without_tls_is_shown_as_a_refusal() {
    let app = Running::start(&["--tcp", "0"]).await;
    let reply = reply(&[&format!("tls://{}", app.address("tcp"))])
        .await
        .expect("an answer of a kind");
    assert!(
        !reply.success && reply.json["refused"] == true,
        "{}",
        reply.text
    );
}
