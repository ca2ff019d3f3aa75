//! An app's own TLS passes through two sidecars untouched, on ports that declare it and on others.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::{FILES, Manifests};
use tulle_tests::{App, Arena, Mesh, Ran, app, eventually};

use crate::foreign::{nginx, nginx_of};
use crate::proof::encrypted_connections;

tulle_tests::cases! {
    curl_verifies_the_certificate_of_nginx_through_the_mesh ["curl", "nginx"];
    declared_tls_passes_by_the_name_that_the_client_asks_for ["curl", "nginx"];
}

async fn curl_verifies_the_certificate_of_nginx_through_the_mesh(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let key = rcgen::generate_simple_self_signed(["secure".to_owned()])?;
    let certificate = key.cert.pem();
    let server = format!(
        "listen 8443 ssl;\nssl_protocols TLSv1.2 TLSv1.3;\nssl_certificate {FILES}/tls.crt;\nssl_certificate_key {FILES}/tls.key;\n\
         location / {{ return 200 \"$ssl_protocol $ssl_server_name\\n\"; }}"
    );
    let server = nginx("secure", &server)
        .file("tls.crt", certificate.clone())
        .file("tls.key", key.signing_key.serialize_pem())
        // The name declares nothing: the first bytes say that it is TLS.
        .port("web", 8443, 8443);
    let client = app("client").file("ca.crt", certificate);
    let arena = mesh.apply("tls-nginx", server + client).await?;
    let ca = format!("{FILES}/ca.crt");
    let argv = [
        "curl",
        "-sS",
        "--max-time",
        "15",
        "--cacert",
        &ca,
        "https://secure:8443/",
    ];
    let out = arena.exec("client", argv).await?.ok()?;
    ensure!(out == "TLSv1.3 secure\n", "{out}");
    encrypted_connections(&arena, "secure", 1).await?;
    eventually(Duration::from_secs(5), async || {
        let log = arena.access_log("client")?;
        let named = log
            .iter()
            .any(|line| line["requested_server_name"] == "secure");
        ensure!(named, "the access log does not name the server: {log:?}");
        Ok(())
    })
    .await
}

async fn declared_tls_passes_by_the_name_that_the_client_asks_for(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let arena = mesh.apply("tls-declared", two_names()?).await?;
    for port in [8443, 9443] {
        for (name, other) in [("one", "two"), ("two", "one")] {
            let out = fetch(&arena, name, port, name).await?.ok()?;
            ensure!(
                out == format!("{name} {name}.test {port} HTTP/1.1\n"),
                "{out}"
            );
            // The certificate is the server's own: that of another name is not good enough.
            let ran = fetch(&arena, name, port, other).await?;
            ensure!(
                ran.status == 60,
                "verified with the wrong certificate: {ran}"
            );
        }
    }
    encrypted_connections(&arena, "secure", 8).await
}

/// One server with two names, each with a certificate of its own, and a client that has both certificates.
fn two_names() -> anyhow::Result<Manifests> {
    let mut servers = Vec::new();
    let mut client = app("client");
    let mut files = Vec::new();
    for name in ["one", "two"] {
        let key = rcgen::generate_simple_self_signed([format!("{name}.test")])?;
        servers.push(format!(
            "listen 8443 ssl;\nlisten 9443 ssl;\nserver_name {name}.test;\nssl_certificate {FILES}/{name}.crt;\n\
             ssl_certificate_key {FILES}/{name}.key;\n\
             location / {{ return 200 \"{name} $ssl_server_name $server_port $server_protocol\\n\"; }}"
        ));
        let certificate = (format!("{name}.crt"), key.cert.pem());
        client = client.file(&certificate.0, certificate.1.clone());
        files.extend([
            certificate,
            (format!("{name}.key"), key.signing_key.serialize_pem()),
        ]);
    }
    let servers: Vec<_> = servers.iter().map(String::as_str).collect();
    let server = nginx_of("secure", &servers)
        .port("https-web", 8443, 8443)
        .port("tls", 9443, 9443);
    let add = |server: App, (name, text): (String, String)| server.file(&name, text);
    Ok(files.into_iter().fold(server, add) + client)
}

/// Asks the server for a name; its certificate must be this one.
async fn fetch(arena: &Arena<'_>, name: &str, port: u16, certificate: &str) -> anyhow::Result<Ran> {
    let ca = format!("{FILES}/{certificate}.crt");
    let url = format!("https://{name}.test:{port}/");
    let to = format!("{name}.test:{port}:secure:{port}");
    let argv = [
        "curl",
        "-sS",
        "--max-time",
        "15",
        "--connect-to",
        &to,
        "--cacert",
        &ca,
        &url,
    ];
    arena.exec("client", argv).await
}
