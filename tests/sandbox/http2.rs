//! HTTP/2 by prior knowledge through two sidecars.

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Mesh, app};

use crate::foreign::nginx;
use crate::proof::{encrypted_requests, wrote};

tulle_tests::cases! {
    http2_by_prior_knowledge_reaches_an_app_as_http2;
    http1_is_detected_on_an_undeclared_port;
    http2_is_detected_on_an_undeclared_port;
    nghttp_gets_several_streams_from_nginx ["nghttp", "nginx"];
    an_http1_client_reaches_an_app_that_declares_http2 ["curl", "nginx"];
    trailers_pass_between_nghttp_and_nghttpd ["nghttp", "nghttpd"];
}

async fn http2_by_prior_knowledge_reaches_an_app_as_http2(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web").serve("--http", 8080, "http2");
    let arena = mesh.apply("http2-app", web + app("client")).await?;
    let arguments = [
        "http://web:8080/?trailer=x-end:42",
        "--http2",
        "--data",
        "hello",
    ];
    let answer = arena.app_call("client", &arguments).await?;
    ensure!(answer["version"] == "HTTP/2.0", "{answer}");
    ensure!(answer["body"]["bodyLength"] == 5, "{answer}");
    ensure!(answer["trailers"]["x-end"] == "42", "{answer}");
    encrypted_requests(&arena, "web", 1).await
}

async fn http1_is_detected_on_an_undeclared_port(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web").serve("--http", 8080, "web");
    let arena = mesh.apply("http1-detected", web + app("client")).await?;
    let answer = arena.app_call("client", &["http://web:8080/"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    encrypted_requests(&arena, "web", 1).await
}

async fn http2_is_detected_on_an_undeclared_port(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web").serve("--http", 8080, "web");
    let arena = mesh.apply("http2-detected", web + app("client")).await?;
    let answer = arena
        .app_call("client", &["http://web:8080/", "--http2"])
        .await?;
    ensure!(
        answer["version"] == "HTTP/2.0" && answer["status"] == 200,
        "{answer}"
    );
    encrypted_requests(&arena, "web", 1).await
}

async fn an_http1_client_reaches_an_app_that_declares_http2(mesh: &Mesh) -> anyhow::Result<()> {
    let server =
        "listen 8080 http2;\nlocation / { return 200 \"$server_protocol $request_method $host\"; }";
    let web = nginx("web", server).port("http2", 8080, 8080);
    let arena = mesh.apply("http2-from-http1", web + app("client")).await?;
    for (method, options) in [("GET", &[][..]), ("POST", &["--data", "some"][..])] {
        let argv = ["curl", "-sS", "--http1.1", "-w", " %{http_version}"].iter();
        let argv = argv.chain(options).chain(&["http://web:8080/"]).copied();
        let out = arena.exec("client", argv).await?.ok()?;
        ensure!(out == format!("HTTP/2.0 {method} web 1.1"), "{out}");
    }
    encrypted_requests(&arena, "web", 2).await
}

async fn nghttp_gets_several_streams_from_nginx(mesh: &Mesh) -> anyhow::Result<()> {
    let server =
        "listen 8080 http2;\nlocation / { return 200 \"$server_protocol $request_uri\\n\"; }";
    let web = nginx("web", server).port("http2", 8080, 8080);
    let arena = mesh.apply("http2-nginx", web + app("client")).await?;
    let argv = [
        "nghttp",
        "-t",
        "10",
        "http://web:8080/a",
        "http://web:8080/b",
    ];
    let out = arena.exec("client", argv).await?.ok()?;
    ensure!(
        out.contains("HTTP/2.0 /a\n") && out.contains("HTTP/2.0 /b\n"),
        "{out}"
    );
    encrypted_requests(&arena, "web", 2).await
}

async fn trailers_pass_between_nghttp_and_nghttpd(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web")
        .command([
            "nghttpd",
            "--no-tls",
            "-v",
            "--echo-upload",
            "--trailer",
            "x-end: 42",
            "--htdocs",
            FILES,
            "8080",
        ])
        .file("greeting.txt", "hello from a file\n")
        .port("http2", 8080, 8080);
    let client = app("client").file("upload.txt", "hello back\n");
    let arena = mesh.apply("http2-nghttpd", web + client).await?;
    let upload = format!("{FILES}/upload.txt");
    let get = ["nghttp", "-v", "-t", "10", "http://web:8080/greeting.txt"];
    let post = [
        "nghttp",
        "-v",
        "-t",
        "10",
        "-d",
        &upload,
        "--trailer",
        "x-sum: 7",
        "http://web:8080/",
    ];
    for (argv, body) in [(&get[..], "hello from a file"), (&post[..], "hello back")] {
        let out = arena.exec("client", argv.iter().copied()).await?.ok()?;
        ensure!(out.contains(body) && out.contains("x-end: 42"), "{out}");
    }
    wrote(&arena, "web", "x-sum: 7").await?;
    encrypted_requests(&arena, "web", 2).await
}
