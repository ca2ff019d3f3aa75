//! Whether the webhooks of an installation work.

use std::collections::BTreeMap;

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::finding::Findings;
use super::injectors::Injectors;
use super::webhook;
use crate::cluster::{answer, ours};

/// Whether the API server can call the webhooks, and none is called twice.
pub(super) async fn webhooks(
    client: &Client,
    injectors: Option<&Injectors>,
    findings: &mut Findings,
) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configurations = match answer("list the webhook configurations", api.list(&ours())).await {
        Ok(configurations) => configurations,
        Err(error) => return findings.unknown("webhook", &error),
    };
    let configurations: Vec<_> = configurations.iter().filter(|it| is_ours(it)).collect();
    if configurations.is_empty() {
        return findings.error(
            "webhook",
            "no MutatingWebhookConfiguration of the mesh",
            "install it: tulle install | kubectl apply --server-side -f -",
        );
    }
    let mut claims = BTreeMap::<String, Vec<String>>::new();
    for configuration in configurations {
        let name = configuration.name_any();
        for (webhook, _) in injectors_of(configuration) {
            let selectors = (&webhook.namespace_selector, &webhook.object_selector);
            claims
                .entry(format!("{selectors:?}"))
                .or_default()
                .push(name.clone());
        }
        if !is_hindered(configuration, injectors, findings) {
            webhook::look(client, configuration, findings).await;
        }
    }
    for twice in claims.values().filter(|names| names.len() > 1) {
        findings.error(
            "webhooks",
            format!("{} claim the same namespaces and pods", twice.join(" and ")),
            "give each control plane a revision of its own: tulle install --revision NAME",
        );
    }
}

/// Its webhooks that call injectors of ours, with the names of these.
fn injectors_of(
    configuration: &MutatingWebhookConfiguration,
) -> impl Iterator<Item = (&MutatingWebhook, &str)> {
    let webhooks = configuration.webhooks.iter().flatten();
    webhooks.filter_map(|it| Some((it, webhook::injector(it)?)))
}

/// Whether it is of an installation of ours, which everything that bears our label need not be.
fn is_ours(configuration: &MutatingWebhookConfiguration) -> bool {
    injectors_of(configuration).next().is_some()
}

/// Whether its webhooks cannot be called, as is to be seen without a call.
fn is_hindered(
    configuration: &MutatingWebhookConfiguration,
    injectors: Option<&Injectors>,
    findings: &mut Findings,
) -> bool {
    let subject = format!("webhook {}", configuration.name_any());
    let state = "pods that it is for cannot be created";
    let gone = injectors_of(configuration)
        .map(|(_, injector)| webhook::revision(injector))
        .find(|revision| injectors.is_some_and(|it| !it.are_none() && !it.have(revision)));
    if let Some(revision) = gone {
        findings.error(
            subject,
            format!("no injector of its revision {revision} is installed: {state}"),
            format!(
                "install it (tulle install --revision {revision}), or, if nobody needs it: kubectl delete \
                 mutatingwebhookconfiguration {}",
                configuration.name_any()
            ),
        );
        return true;
    }
    let trusts = |webhook: &MutatingWebhook| {
        let bundle = webhook.client_config.ca_bundle.as_ref();
        bundle.is_some_and(|it| CertificateDer::pem_slice_iter(&it.0).next().is_some())
    };
    let trusting = injectors_of(configuration).all(|(webhook, _)| trusts(webhook));
    if !trusting {
        findings.error(
            subject,
            format!("its caBundle is empty: {state}"),
            "the control plane fills it in: see that it runs, and what its log says",
        );
    }
    !trusting
}

/// The first few of many.
pub(in crate::cluster) fn some(names: &[&str]) -> String {
    const FEW: usize = 5;
    let mut text = names[..names.len().min(FEW)].join(", ");
    if names.len() > FEW {
        text += &format!(" and {} more", names.len() - FEW);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::finding::Level;
    use super::*;

    /// A configuration of which each webhook calls such a Service, with such a bundle.
    fn configuration(webhooks: &[(&str, &str)]) -> MutatingWebhookConfiguration {
        let webhook = |(service, bundle): &(&str, &str)| {
            json!({
                "name": "x", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {
                    "service": { "namespace": "tulle-system", "name": service }, "caBundle": bundle,
                },
            })
        };
        let webhooks: Vec<_> = webhooks.iter().map(webhook).collect();
        let metadata = json!({ "name": "some" });
        serde_json::from_value(json!({ "metadata": metadata, "webhooks": webhooks }))
            .expect("a configuration")
    }

    fn injectors(names: &[&str]) -> Injectors {
        let deployment = |name: &&str| {
            let template = json!({ "spec": { "containers": [] } });
            let spec = json!({ "selector": {}, "template": template });
            let deployment: Value = json!({ "metadata": { "name": name }, "spec": spec });
            serde_json::from_value(deployment).expect("a Deployment")
        };
        Injectors::of(&names.iter().map(deployment).collect::<Vec<_>>())
    }

    #[test]
    fn a_configuration_is_ours_that_calls_an_injector_of_ours() {
        for (services, expected) in [
            (&[("tulle-injector", "")][..], true),
            (&[("dashboards", ""), ("tulle-injector-next", "")], true),
            (&[("dashboards", "")], false),
            (&[], false),
        ] {
            assert_eq!(is_ours(&configuration(services)), expected, "{services:?}");
        }
    }

    #[test]
    fn webhooks_that_nobody_can_call_are_found_with_what_helps() {
        // Any certificate, in base64 as in all of JSON.
        let bundle =
            "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
        let both = || Some(injectors(&["tulle-injector", "tulle-injector-next"]));
        for (name, webhooks, injectors, remedy) in [
            ("well", &[("tulle-injector", bundle)][..], both(), None),
            (
                "no bundle",
                &[("tulle-injector", "")],
                both(),
                Some("fills it in"),
            ),
            // The stranger's has its own way to be trusted.
            (
                "one is a stranger's",
                &[("tulle-injector", bundle), ("dashboards", "")],
                both(),
                None,
            ),
            (
                "left behind",
                &[("tulle-injector-old", "")],
                both(),
                Some("tulle install --revision old"),
            ),
            ("not seen", &[("tulle-injector-old", bundle)], None, None),
        ] {
            let mut findings = Findings::default();
            let configuration = configuration(webhooks);
            let hindered = is_hindered(&configuration, injectors.as_ref(), &mut findings);
            assert_eq!(hindered, remedy.is_some(), "{name}: {findings:?}");
            let found = findings.all.first();
            assert_eq!(found.map(|it| it.level), remedy.map(|_| Level::Error));
            let told = found.and_then(|it| it.remedy.as_deref());
            let words = told.unwrap_or_default();
            assert!(
                words.contains(remedy.unwrap_or_default()),
                "{name}: {words}"
            );
        }
    }
}
