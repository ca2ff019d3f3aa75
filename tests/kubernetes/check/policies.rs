//! A policy that cannot be used: what is said of it depends on whether anything of it is in force.

use anyhow::ensure;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};

use super::{SOON, findings};

/// A policy for the pods of a Service. The definition of ours takes any name for one.
fn policy(service: &str) -> String {
    format!(
        "apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: {{ name: shut }}
spec: {{ targetRefs: [{{ kind: Service, name: {service} }}], mtls: {{ mode: STRICT }} }}
"
    )
}

/// Fails unless one that never was good is an error, and one that was is none.
pub(super) async fn are_judged_by_what_is_in_force(
    kubernetes: &Kubernetes,
    namespace: &Namespace<'_>,
) -> anyhow::Result<()> {
    let subject = "PeerAuthentication uninjected/shut";
    let level = async |expected: Option<&str>, remedy: &str| {
        eventually(SOON, async || {
            let found = findings(kubernetes)?;
            let told = found.iter().find(|it| it["subject"] == subject);
            let level = told.and_then(|it| it["level"].as_str());
            ensure!(level == expected, "{found:?}");
            let said = told.map(|it| it["remedy"].to_string());
            ensure!(said.unwrap_or_default().contains(remedy), "{told:?}");
            Ok(())
        })
        .await
    };
    let apply = |service| {
        let apply = ["apply", "-f", "-"];
        namespace.ask(apply, &policy(service))
    };
    apply("No.Name")?;
    level(Some("error"), "it has had no good version").await?;
    apply("web")?;
    level(None, "").await?;
    apply("No.Name")?;
    level(Some("warning"), "its last good version counts").await?;
    namespace.ask(["delete", "peerauthentications.tulle.dev", "shut"], "")?;
    level(None, "").await
}
