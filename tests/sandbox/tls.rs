//! An app's own TLS passes through two sidecars untouched, on ports that declare it and on others.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Mesh, app, eventually};

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
    let ports = [("https-web", 8443), ("tls", 9443)];
    let keys = ["one", "two"].map(|name| {
        let key = rcgen::generate_simple_self_signed([format!("{name}.test")]);
        key.map(|key| (name, key))
    });
    let (mut servers, mut files) = (Vec::new(), Vec::new());
    for made in keys {
        let (name, key) = made?;
        servers.push(format!(
            "listen 8443 ssl;\nlisten 9443 ssl;\nserver_name {name}.test;\nssl_certificate {FILES}/{name}.crt;\n\
             ssl_certificate_key {FILES}/{name}.key;\n\
             location / {{ return 200 \"{name} $ssl_server_name $server_port $server_protocol\\n\"; }}"
        ));
        files.push((format!("{name}.crt"), key.cert.pem()));
        files.push((format!("{name}.key"), key.signing_key.serialize_pem()));
    }
    let mut server = nginx_of("secure", &[&servers[0], &servers[1]]);
    for (name, port) in ports {
        server = server.port(name, port, port);
    }
    let mut client = app("client");
    for (name, text) in files {
        server = server.file(&name, text.clone());
        client = client.file(&name, text);
    }
    let arena = mesh.apply("tls-declared", server + client).await?;
    for (_, port) in ports {
        for (name, other) in [("one", "two"), ("two", "one")] {
            let fetch = async |certificate: &str| {
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
            };
            let out = fetch(name).await?.ok()?;
            ensure!(
                out == format!("{name} {name}.test {port} HTTP/1.1\n"),
                "{out}"
            );
            // The certificate is the server's own: that of another name is not good enough.
            let ran = fetch(other).await?;
            ensure!(
                ran.status == 60,
                "verified with the wrong certificate: {ran}"
            );
        }
    }
    encrypted_connections(&arena, "secure", 8).await
}
