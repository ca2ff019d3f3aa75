//! An app's own TLS passes through two sidecars untouched.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Mesh, app, eventually};

use crate::foreign::nginx;
use crate::proof::encrypted_connections;

tulle_tests::cases! {
    curl_verifies_the_certificate_of_nginx_through_the_mesh ["curl", "nginx"];
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
