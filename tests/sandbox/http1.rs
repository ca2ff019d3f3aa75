//! HTTP/1.0 and 1.1 through two sidecars.

use anyhow::ensure;
use tulle_tests::{Arena, Mesh, app};

use crate::foreign::{RAW, nginx, script};
use crate::proof::encrypted_requests;

tulle_tests::cases! {
    an_answer_says_who_answered_over_mutual_tls;
    plaintext_never_crosses_the_bridge;
    pipelined_requests_are_answered_in_order_on_one_connection ["python3"];
    chunked_bodies_and_trailers_pass_both_ways ["python3"];
    expect_is_answered_with_100_before_the_body_is_sent ["curl"];
    head_has_the_length_and_no_body ["curl"];
    an_upgraded_connection_carries_bytes_both_ways ["python3"];
    curl_reuses_its_connection_to_nginx ["curl", "nginx"];
    nginx_answers_a_body_that_curl_sends_in_chunks ["curl", "nginx"];
    trailers_pass_from_nginx_to_curl ["curl", "nginx"];
    python_talks_to_an_http_1_0_server ["python3"];
    http_1_0_of_curl_is_kept_alive_only_when_it_asks ["curl", "nginx"];
    nginx_as_an_http_1_0_proxy_reaches_nginx ["curl", "nginx"];
}

async fn an_answer_says_who_answered_over_mutual_tls(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-answer", app("web").http(8080) + app("client"))
        .await?;
    let answer = arena.app_call("client", &["http://web:8080/hello"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    ensure!(answer["body"]["name"] == "web", "{answer}");
    encrypted_requests(&arena, "web", 1).await
}

async fn plaintext_never_crosses_the_bridge(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-capture", app("web").http(8080) + app("client"))
        .await?;
    let word = "a-word-that-only-this-test-says";
    let capture = mesh.sandbox.capture()?;
    let answer = arena
        .app_call(
            "client",
            &[
                "http://web:8080/",
                "--data",
                word,
                "--header",
                &format!("x-word:{word}"),
            ],
        )
        .await?;
    ensure!(answer["body"]["headers"]["x-word"] == word, "{answer}");
    capture.settle().await;
    ensure!(capture.frames() > 0, "the capture saw nothing at all");
    ensure!(
        !capture.contains(word.as_bytes()),
        "the word crossed the bridge in plaintext"
    );
    Ok(())
}

async fn raw(arena: &Arena<'_>, request: &str) -> anyhow::Result<String> {
    let argv = script("python3", RAW, &["web", "8080", request]);
    arena.exec("client", argv).await?.ok()
}

async fn pipelined_requests_are_answered_in_order_on_one_connection(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-pipelining", app("web").http(8080) + app("client"))
        .await?;
    let answers = raw(
        &arena,
        "GET /one HTTP/1.1\r\nHost: web\r\n\r\n\
         POST /two HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello\
         GET /three HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(answers.matches("HTTP/1.1 200").count() == 3, "{answers}");
    let at: Vec<_> = ["\"/one\"", "\"/two\"", "\"/three\""]
        .iter()
        .map(|path| answers.find(path))
        .collect();
    ensure!(
        at.iter().all(Option::is_some) && at.is_sorted(),
        "{at:?}: {answers}"
    );
    encrypted_requests(&arena, "web", 3).await
}

async fn chunked_bodies_and_trailers_pass_both_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-chunked", app("web").http(8080) + app("client"))
        .await?;
    let answer = raw(
        &arena,
        "POST /?trailer=x-end:42 HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: x-sum\r\n\
         Transfer-Encoding: chunked\r\nConnection: close, TE\r\n\r\n\
         5\r\nhello\r\n7\r\n, world\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await?;
    let lower = answer.to_lowercase();
    ensure!(lower.contains("transfer-encoding: chunked"), "{answer}");
    ensure!(
        answer.replace(' ', "").contains("\"bodyLength\":12"),
        "{answer}"
    );
    ensure!(
        answer.contains("x-sum"),
        "the app did not get the trailer: {answer}"
    );
    ensure!(
        lower.contains("\r\n0\r\nx-end: 42\r\n"),
        "no trailer came back: {answer}"
    );
    Ok(())
}

async fn expect_is_answered_with_100_before_the_body_is_sent(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-expect", app("web").http(8080) + app("client"))
        .await?;
    let argv = [
        "curl",
        "-sSv",
        "--max-time",
        "15",
        "--expect100-timeout",
        "10",
        "-H",
        "Expect: 100-continue",
        "-d",
        "hello",
        "http://web:8080/",
    ];
    let ran = arena.exec("client", argv).await?;
    ensure!(ran.stderr.contains("< HTTP/1.1 100 Continue"), "{ran}");
    ensure!(ran.stderr.contains("< HTTP/1.1 200 OK"), "{ran}");
    ensure!(
        ran.stdout.replace(' ', "").contains("\"bodyLength\":5"),
        "{ran}"
    );
    Ok(())
}

async fn head_has_the_length_and_no_body(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-head", app("web").http(8080) + app("client"))
        .await?;
    let argv = [
        "curl",
        "-sS",
        "--max-time",
        "15",
        "-I",
        "http://web:8080/?size=100",
        "http://web:8080/?size=100",
        "-w",
        "connects=%{num_connects}\n",
    ];
    let out = arena.exec("client", argv).await?.ok()?;
    ensure!(out.matches("HTTP/1.1 200").count() == 2, "{out}");
    ensure!(
        out.to_lowercase().matches("content-length: 100").count() == 2,
        "{out}"
    );
    ensure!(
        out.contains("connects=0"),
        "the connection was not kept: {out}"
    );
    Ok(())
}

async fn an_upgraded_connection_carries_bytes_both_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-upgrade", app("web").http(8080) + app("client"))
        .await?;
    let upgrade = r"
import socket
s = socket.create_connection(('web', 8080), 10)
s.settimeout(10)
s.sendall(b'GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n')
head = b''
while b'\r\n\r\n' not in head: head += s.recv(1)
print(head.decode())
for word in (b'ping', b'pong'):
    s.sendall(word)
    got = b''
    while len(got) < 4: got += s.recv(4)
    print(got.decode())
";
    let out = arena
        .exec("client", script("python3", upgrade, &[]))
        .await?
        .ok()?;
    ensure!(out.starts_with("HTTP/1.1 101"), "{out}");
    ensure!(out.trim_end().ends_with("ping\npong"), "{out}");
    encrypted_requests(&arena, "web", 1).await
}

async fn curl_reuses_its_connection_to_nginx(mesh: &Mesh) -> anyhow::Result<()> {
    let server = "listen 8080;\nlocation / { return 200 \"$server_protocol $request_uri\\n\"; }";
    let arena = mesh
        .apply(
            "http1-nginx",
            nginx("web", server).port("http", 8080, 8080) + app("client"),
        )
        .await?;
    let argv = [
        "curl",
        "-sS",
        "--max-time",
        "15",
        "-w",
        "connects=%{num_connects}\n",
        "http://web:8080/a",
        "http://web:8080/b",
    ];
    let out = arena.exec("client", argv).await?.ok()?;
    ensure!(
        out == "HTTP/1.1 /a\nconnects=1\nHTTP/1.1 /b\nconnects=0\n",
        "{out}"
    );
    encrypted_requests(&arena, "web", 2).await
}

async fn nginx_answers_a_body_that_curl_sends_in_chunks(mesh: &Mesh) -> anyhow::Result<()> {
    // The second location reads the body and says how long it was.
    let server = "listen 8080;\nclient_max_body_size 10m;\n\
        location / { proxy_pass http://127.0.0.1:8080/length; }\n\
        location /length { return 200 \"$http_content_length $http_transfer_encoding\\n\"; }";
    let arena = mesh
        .apply(
            "http1-nginx-chunked",
            nginx("web", server).port("http", 8080, 8080) + app("client"),
        )
        .await?;
    let line = "head -c 300000 /dev/zero | curl -sS --max-time 15 -H 'Expect:' -H 'Transfer-Encoding: chunked' \
        --data-binary @- http://web:8080/";
    let out = arena.exec("client", ["sh", "-c", line]).await?.ok()?;
    ensure!(out.trim() == "300000", "{out}");
    Ok(())
}

async fn python_talks_to_an_http_1_0_server(mesh: &Mesh) -> anyhow::Result<()> {
    let server = app("web")
        .command([
            "python3",
            "-m",
            "http.server",
            "8080",
            "--directory",
            tulle_tests::manifests::FILES,
        ])
        .file("greeting.txt", "hello from a file\n")
        .port("http", 8080, 8080);
    let arena = mesh.apply("http1-python", server + app("client")).await?;
    let fetch = "import urllib.request\n\
        with urllib.request.urlopen('http://web:8080/greeting.txt', timeout=10) as answer:\n\
        \x20   print(answer.status, answer.headers['server'], answer.read().decode())\n";
    let out = arena
        .exec("client", script("python3", fetch, &[]))
        .await?
        .ok()?;
    ensure!(out.starts_with("200 SimpleHTTP"), "{out}");
    ensure!(out.contains("hello from a file"), "{out}");
    encrypted_requests(&arena, "web", 1).await
}

async fn trailers_pass_from_nginx_to_curl(mesh: &Mesh) -> anyhow::Result<()> {
    // A second server makes the body, because only what is not already at its end gets trailers.
    let server = "listen 8080;\nlocation /body { return 200 \"the body\\n\"; }\n\
        location / { proxy_pass http://127.0.0.1:8080/body; add_header Trailer x-end; add_trailer x-end 42; }";
    let web = nginx("web", server).port("http", 8080, 8080);
    let arena = mesh.apply("http1-trailers", web + app("client")).await?;
    let get = async |headers: &[&str]| {
        let argv = [
            "curl",
            "-sS",
            "--max-time",
            "15",
            "-D",
            "-",
            "http://web:8080/",
        ];
        let argv = argv.iter().chain(headers).copied();
        arena.exec("client", argv).await?.ok()
    };
    let out = get(&["-H", "TE: trailers", "-H", "Connection: TE"]).await?;
    let lower = out.to_lowercase();
    ensure!(lower.contains("transfer-encoding: chunked"), "{out}");
    ensure!(out.contains("the body\n"), "{out}");
    ensure!(lower.contains("x-end: 42\r\n"), "no trailer came: {out}");
    let out = get(&[]).await?;
    ensure!(out.contains("the body\n"), "{out}");
    ensure!(
        !out.contains("x-end: 42"),
        "a trailer that was not wanted: {out}"
    );
    encrypted_requests(&arena, "web", 2).await
}

async fn http_1_0_of_curl_is_kept_alive_only_when_it_asks(mesh: &Mesh) -> anyhow::Result<()> {
    let server = "listen 8080;\nlocation / { return 200 \"$request_uri\\n\"; }";
    let web = nginx("web", server).port("http", 8080, 8080);
    let arena = mesh.apply("http1-curl-1-0", web + app("client")).await?;
    let get = async |more: &[&str]| {
        let argv = [
            "curl",
            "-sS0",
            "--max-time",
            "15",
            "-w",
            "HTTP/%{http_version} connects=%{num_connects}\n",
            "http://web:8080/a",
            "http://web:8080/b",
        ];
        arena
            .exec("client", argv.iter().chain(more).copied())
            .await?
            .ok()
    };
    let out = get(&["-H", "Connection: keep-alive"]).await?;
    ensure!(
        out == "/a\nHTTP/1 connects=1\n/b\nHTTP/1 connects=0\n",
        "{out}"
    );
    let out = get(&[]).await?;
    ensure!(
        out == "/a\nHTTP/1 connects=1\n/b\nHTTP/1 connects=1\n",
        "{out}"
    );
    encrypted_requests(&arena, "web", 4).await
}

async fn nginx_as_an_http_1_0_proxy_reaches_nginx(mesh: &Mesh) -> anyhow::Result<()> {
    let web = nginx(
        "web",
        "listen 8080;\nlocation / { return 200 \"$request_method $request_uri $http_host\\n\"; }",
    )
    .port("http", 8080, 8080);
    let edge = nginx(
        "edge",
        "listen 127.0.0.1:8081;\nresolver_timeout 10s;\n\
         location / { proxy_http_version 1.0; proxy_pass http://web:8080; }",
    );
    let arena = mesh.apply("http1-nginx-1-0", web + edge).await?;
    let argv = [
        "curl",
        "-sS",
        "--max-time",
        "15",
        "http://127.0.0.1:8081/a",
        "http://127.0.0.1:8081/b",
        "--next",
        "-sS",
        "--max-time",
        "15",
        "-d",
        "hello",
        "http://127.0.0.1:8081/c",
    ];
    let out = arena.exec("edge", argv).await?.ok()?;
    ensure!(
        out == "GET /a web:8080\nGET /b web:8080\nPOST /c web:8080\n",
        "{out}"
    );
    encrypted_requests(&arena, "web", 3).await
}
