//! IPv6: Services with an address of each family, and pods by their address.

use anyhow::{Context as _, ensure};
use tulle_tests::{Mesh, app};

use crate::foreign::nginx;
use crate::proof::encrypted_requests;

tulle_tests::cases! {
    a_dual_stack_service_and_a_pod_are_reached_over_ipv6 ["curl", "ipv6"];
    curl_talks_to_nginx_over_ipv6 ["curl", "ipv6", "nginx"];
}

async fn a_dual_stack_service_and_a_pod_are_reached_over_ipv6(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web").http(8080).dual_stack();
    let arena = mesh.apply("ipv6", web + app("client")).await?;
    let address = arena
        .pod("web")?
        .ips
        .v6
        .context("the pod has no IPv6 address")?;
    for (family, url) in [
        ("-4", "http://web:8080/".to_owned()),
        ("-6", "http://web:8080/".to_owned()),
        ("-6", format!("http://[{address}]:8080/")),
    ] {
        let argv = [
            "curl",
            "-sS",
            "--max-time",
            "15",
            family,
            "-w",
            "\n%{http_code} %{remote_ip}",
            &url,
        ];
        let out = arena.exec("client", argv).await?.ok()?;
        let last = out.lines().last().unwrap_or_default();
        let (status, peer) = last
            .split_once(' ')
            .context("curl says status and address")?;
        ensure!(status == "200", "{url}: {out}");
        ensure!(peer.contains(':') == (family == "-6"), "{url}: {out}");
    }
    encrypted_requests(&arena, "web", 3).await
}

async fn curl_talks_to_nginx_over_ipv6(mesh: &Mesh) -> anyhow::Result<()> {
    // The probe asks over IPv4.
    let server = "listen 8080;\nlisten [::]:8080;\nlocation / { return 200 \"$server_addr $request_uri\\n\"; }";
    let web = nginx("web", server).port("http", 8080, 8080).ipv6_only();
    let arena = mesh.apply("ipv6-nginx", web + app("client")).await?;
    let address = arena.pod("web")?.ips.v6;
    let address = address.context("the pod has no IPv6 address")?.to_string();
    let argv = [
        "curl",
        "-sS6",
        "--max-time",
        "15",
        "http://web:8080/a",
        "http://web:8080/b",
    ];
    let out = arena.exec("client", argv).await?.ok()?;
    ensure!(
        out.replace(['[', ']'], "") == format!("{address} /a\n{address} /b\n"),
        "{out}"
    );
    encrypted_requests(&arena, "web", 2).await
}
