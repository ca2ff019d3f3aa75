//! IPv6: Services with an address of each family, and pods by their address.

use anyhow::{Context as _, ensure};
use tulle_tests::{Mesh, app};

use crate::proof::encrypted_requests;

tulle_tests::cases! {
    a_dual_stack_service_and_a_pod_are_reached_over_ipv6 ["curl", "ipv6"];
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
