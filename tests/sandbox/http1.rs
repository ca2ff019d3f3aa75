//! HTTP/1.1 through two sidecars.

use anyhow::ensure;
use tulle_tests::{Mesh, app};

tulle_tests::cases! {
    an_answer_says_who_answered_over_mutual_tls;
}

async fn an_answer_says_who_answered_over_mutual_tls(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("http1-answer", app("web").http(8080) + app("client"))
        .await?;
    let answer = arena.app_call("client", &["http://web:8080/hello"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    let metrics = arena.metrics("web").await?;
    let encrypted = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    ensure!(
        metrics.sum("istio_requests_total", &encrypted) >= 1.0,
        "{}",
        metrics.text()
    );
    Ok(())
}
