//! Identity from the platform: roots, bundles, the election of who writes them, and whose tokens are believed.

mod plane;
mod tokens;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tulle_tests::{Kubernetes, eventually};

use plane::{Mesh, Plane, SOON};

tulle_tests::cases! { in Kubernetes:
    two_control_planes_have_one_root_and_one_of_them_writes ["alone"];
    the_bundle_is_kept_true_wherever_it_belongs ["alone"];
    a_provided_root_is_replaced_live_by_overlap_and_gives_way_where_nobody_provides_it ["alone"];
    a_root_that_is_no_good_is_refused_with_the_reason ["alone"];
    row_34_debug_views_are_on_loopback_and_metrics_on_the_address_of_the_pod ["alone"];
}

/// These, and those about tokens.
pub(crate) fn all() -> impl Iterator<Item = tulle_tests::Case<Kubernetes>> {
    cases().into_iter().chain(tokens::cases())
}

const WEBHOOKS: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: tulle-test, labels: { app.kubernetes.io/part-of: tulle } }
webhooks:
- name: one.tulle.test
  clientConfig: { service: { namespace: tulle-system, name: tulle-injector-test, path: /inject } }
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  rules: [{ apiGroups: [tulle.test], apiVersions: [v1], operations: [CREATE], resources: [nothings] }]
- name: two.tulle.test
  clientConfig: { service: { namespace: tulle-system, name: tulle-injector-test, path: /inject } }
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  rules: [{ apiGroups: [tulle.test], apiVersions: [v1], operations: [CREATE], resources: [nothings] }]
"#;

/// What webhooks have, of what we write and what we do not.
const HELD: &str = "go-template={{range .webhooks}}{{.clientConfig.caBundle | base64decode}}\
    {{.clientConfig.service.name}} {{.failurePolicy}}{{end}}";

/// The one that writes, and the other.
async fn elected(one: Plane, two: Plane) -> anyhow::Result<(Plane, Plane)> {
    let first = eventually(SOON, async || {
        let leads = (one.leads()?, two.leads()?);
        ensure!(leads.0 != leads.1, "{leads:?} lead");
        Ok(leads.0)
    });
    Ok(if first.await? { (one, two) } else { (two, one) })
}

async fn two_control_planes_have_one_root_and_one_of_them_writes(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| mesh.plane("node0", &[]));
        let two = mesh.plane("node1", &[]);
        one.join().map(|one| (one, two))
    })
    .map_err(|_| anyhow::Error::msg("it panicked"))?;
    let (one, two) = (one?, two?);
    let root = one.ca()?["trust_bundle"].clone();
    ensure!(two.ca()?["trust_bundle"] == root, "two roots");
    let (leader, other) = elected(one, two).await?;
    let written = eventually(SOON, async || mesh.bundle("tulle-system")).await?;
    ensure!(root == written, "{written} is not {root}");

    // Without a word.
    let before = mesh.holder()?;
    leader.kill()?;
    let killed = Instant::now();
    mesh.ask(
        &["-n", "tulle-system", "delete", "configmap", "tulle-ca-root"],
        "",
    )?;
    let again = eventually(SOON, async || mesh.bundle("tulle-system")).await?;
    let took = killed.elapsed();
    ensure!(
        took < Duration::from_secs(5),
        "the other one writes after {took:?}"
    );
    ensure!(root == again && other.leads()? && mesh.holder()? != before);

    // With one: the lease is free at once.
    let third = mesh.plane("node0", &[])?;
    ensure!(third.ca()?["trust_bundle"] == root);
    other.terminate()?;
    let ended = Instant::now();
    eventually(SOON, async || {
        ensure!(third.leads()?, "it does not lead");
        Ok(())
    })
    .await?;
    let took = ended.elapsed();
    ensure!(
        took < Duration::from_secs(2),
        "the lease was not given back: {took:?}"
    );

    // The Secret is put back from memory.
    mesh.ask(&["-n", "tulle-system", "delete", "secret", "tulle-ca"], "")?;
    eventually(SOON, async || mesh.get("tulle-system", "secret/tulle-ca")).await?;
    ensure!(
        third.said().contains("it was put back from memory"),
        "{}",
        third.said()
    );
    let fourth = mesh.plane("node1", &[])?;
    ensure!(fourth.ca()?["trust_bundle"] == root, "a new root");
    Ok(())
}

async fn the_bundle_is_kept_true_wherever_it_belongs(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let names = ["meshed", "revised", "plain", "ending"];
    for name in names {
        mesh.ask(&["create", "namespace", name], "")?;
    }
    let _gone = Gone(&mesh, &names);
    mesh.ask(&["apply", "--server-side", "-f", "-"], WEBHOOKS)?;
    mesh.ask(
        &[
            "label",
            "namespace",
            "meshed",
            "ending",
            "tulle.dev/inject=enabled",
        ],
        "",
    )?;
    mesh.ask(
        &["label", "namespace", "revised", "tulle.dev/rev=canary"],
        "",
    )?;
    let plane = mesh.plane("node0", &["--root-propagation=2s"])?;
    let root = plane.ca()?["trust_bundle"]
        .as_str()
        .context("a bundle")?
        .to_owned();
    let homes = ["tulle-system", "meshed", "revised"];
    let everywhere = async |bundle: &str| {
        eventually(SOON, async || {
            for home in homes {
                ensure!(mesh.bundle(home)? == bundle, "{home} has another");
            }
            let held = mesh.ask(
                &[
                    "get",
                    "mutatingwebhookconfiguration",
                    "tulle-test",
                    "-o",
                    HELD,
                ],
                "",
            )?;
            let theirs = "tulle-injector-test Ignore";
            ensure!(
                held == format!("{bundle}{theirs}{bundle}{theirs}"),
                "{held}"
            );
            Ok(())
        })
        .await
    };
    everywhere(&root).await?;
    let map = mesh.get("meshed", "configmap/tulle-ca-root")?;
    ensure!(
        map["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tulle",
        "{map}"
    );
    ensure!(mesh.bundle("plain").is_err(), "nobody asked for it there");

    // Whatever others do to it.
    let patch = |what: &str| {
        [
            "-n",
            "meshed",
            "patch",
            "configmap",
            "tulle-ca-root",
            "--type=merge",
            "-p",
            what,
        ]
        .map(str::to_owned)
    };
    for spoilt in [
        r#"{"data":{"root.pem":"no"}}"#,
        r#"{"data":null}"#,
        r#"{"metadata":{"labels":null}}"#,
        r#"{"immutable":true,"data":{"root.pem":"no"}}"#,
    ] {
        let arguments = patch(spoilt);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        mesh.ask(&arguments, "")?;
        everywhere(&root).await.context(spoilt)?;
    }
    mesh.ask(
        &["-n", "revised", "delete", "configmap", "tulle-ca-root"],
        "",
    )?;
    everywhere(&root).await?;
    let spoilt = r#"[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":""}]"#;
    mesh.ask(
        &[
            "patch",
            "mutatingwebhookconfiguration",
            "tulle-test",
            "--type=json",
            "-p",
            spoilt,
        ],
        "",
    )?;
    everywhere(&root).await?;

    // A namespace that joins has it within a second.
    mesh.ask(
        &["label", "namespace", "plain", "tulle.dev/inject=enabled"],
        "",
    )?;
    let joined = Instant::now();
    eventually(SOON, async || mesh.bundle("plain")).await?;
    let took = joined.elapsed();
    ensure!(
        took < Duration::from_secs(1),
        "a new namespace waits {took:?}"
    );

    // One that cannot end does not hold a rotation up.
    let held = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: held, finalizers: [tulle.test/held] }\n";
    mesh.ask(&["-n", "ending", "apply", "-f", "-"], held)?;
    mesh.ask(&["delete", "namespace", "ending", "--wait=false"], "")?;
    let begun = plane.admin("POST", "/ca/rotate-root")?;
    ensure!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    let both = plane.ca()?["trust_bundle"]
        .as_str()
        .context("a bundle")?
        .to_owned();
    ensure!(both.matches("BEGIN CERTIFICATE").count() == 2, "{both}");
    everywhere(&both).await?;
    eventually(SOON, async || {
        let ca = plane.ca()?;
        ensure!(ca["stage"]["switched"].is_object(), "{ca}");
        Ok(())
    })
    .await?;
    Ok(())
}

/// Namespaces and webhooks that go with a test.
struct Gone<'a>(&'a Mesh<'a>, &'a [&'a str]);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let free = r#"{"metadata":{"finalizers":null}}"#;
        // What is not there need not go.
        let _ = self.0.ask(
            &[
                "-n",
                "ending",
                "patch",
                "configmap",
                "held",
                "--type=merge",
                "-p",
                free,
            ],
            "",
        );
        let delete = [
            &["delete", "namespace", "--ignore-not-found", "--wait=true"],
            self.1,
        ]
        .concat();
        let _ = self.0.ask(&delete, "");
        let delete = ["delete", "mutatingwebhookconfiguration", "tulle-test"];
        let _ = self.0.ask(&delete, "");
    }
}

/// A root with its key, as a Secret of cert-manager's has them.
fn provided(name: &str) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key)?.pem();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": "provided",
            "namespace": "tulle-system",
            "labels": { "app.kubernetes.io/part-of": "tulle" },
        },
        "stringData": { "tls.crt": root, "ca.crt": root, "tls.key": key.serialize_pem() },
    });
    Ok((secret.to_string(), root.replace('\r', "")))
}

async fn a_provided_root_is_replaced_live_by_overlap_and_gives_way_where_nobody_provides_it(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let ((old, old_root), (new, new_root)) = (provided("old")?, provided("new")?);
    mesh.ask(&["apply", "-f", "-"], &old)?;
    let options = [
        "--ca-issuer-secret=provided",
        "--root-propagation=3s",
        "--leaf-ttl=2s",
    ];
    let planes = [
        mesh.plane("node0", &options)?,
        mesh.plane("node1", &options)?,
    ];
    let bundle = async |expected: &str, stage: &str| {
        eventually(SOON, async || {
            for plane in &planes {
                let ca = plane.ca()?;
                ensure!(
                    ca["trust_bundle"] == expected && ca["stage"].to_string().contains(stage),
                    "{ca}"
                );
            }
            ensure!(mesh.bundle("tulle-system")? == expected);
            Ok(())
        })
        .await
    };
    bundle(&old_root, "steady").await?;
    mesh.ask(&["apply", "-f", "-"], &new)?;
    let both = format!("{old_root}{new_root}");
    bundle(&both, "announced").await?;
    bundle(&both, "switched").await?;
    // What is no good changes nothing.
    let broken = r#"{"stringData":{"tls.key":"no"}}"#;
    let patch = [
        "-n",
        "tulle-system",
        "patch",
        "secret",
        "provided",
        "-p",
        broken,
    ];
    mesh.ask(&patch, "")?;
    eventually(SOON, async || {
        let said: Vec<_> = planes.iter().map(Plane::said).collect();
        let told = said
            .iter()
            .any(|said| said.contains("the provided root cannot be used"));
        ensure!(told, "{said:?}");
        Ok(())
    })
    .await?;
    bundle(&both, "switched").await?;

    // Whoever names none any more has a root of the mesh's own, and the Secret may go at once.
    for plane in planes {
        plane.terminate()?;
    }
    mesh.ask(&["-n", "tulle-system", "delete", "secret", "provided"], "")?;
    let plane = mesh.plane("node0", &options[1..])?;
    // The rotation before ends first, a minute and the life of a certificate after its switch.
    eventually(SOON * 2, async || {
        let (ca, bundle) = (plane.ca()?, mesh.bundle("tulle-system")?);
        let own = bundle
            .strip_prefix(&new_root)
            .is_some_and(|own| !own.is_empty());
        let signs = own && ca["stage"].to_string().contains("switched");
        ensure!(signs && ca["trust_bundle"] == bundle, "{ca}");
        Ok(())
    })
    .await
}

async fn a_root_that_is_no_good_is_refused_with_the_reason(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let good = mesh.plane("node0", &[])?;
    eventually(SOON, async || mesh.bundle("tulle-system")).await?;
    good.terminate()?;
    let refused = |options: &[&str]| match mesh.plane("node0", options) {
        Ok(_) => anyhow::bail!("it starts"),
        Err(error) => Ok(format!("{error:#}")),
    };
    let said = refused(&["--trust-domain=other.mesh"])?;
    ensure!(said.contains("--trust-domain cluster.local"), "{said}");
    let patch = [
        "-n",
        "tulle-system",
        "patch",
        "secret",
        "tulle-ca",
        "-p",
        r#"{"data":{"ca.json":"e30="}}"#,
    ];
    mesh.ask(&patch, "")?;
    let said = refused(&[])?;
    ensure!(
        said.contains("Secret tulle-system/tulle-ca") && said.contains("backup"),
        "{said}"
    );
    mesh.ask(&["-n", "tulle-system", "delete", "secret", "tulle-ca"], "")?;
    let said = refused(&[])?;
    ensure!(said.contains("is gone, but its mesh is not"), "{said}");
    mesh.ask(
        &["-n", "tulle-system", "delete", "configmap", "tulle-ca-root"],
        "",
    )?;
    drop(mesh.plane("node0", &[])?);
    Ok(())
}

async fn row_34_debug_views_are_on_loopback_and_metrics_on_the_address_of_the_pod(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let plane = mesh.plane("node0", &[])?;
    let outside = SocketAddr::from(([10, 90, 0, 10], plane.admin.port()));
    for (path, exposed) in [
        ("/metrics", true),
        ("/ca", false),
        ("/debug/proxies", false),
    ] {
        let inside = plane.admin("GET", path)?;
        ensure!(inside.starts_with("HTTP/1.1 200"), "{path}: {inside}");
        let status = if exposed {
            "HTTP/1.1 200"
        } else {
            "HTTP/1.1 404"
        };
        let answer = plane.admin_at(outside, "GET", path)?;
        ensure!(answer.starts_with(status), "{path}: {answer}");
    }
    Ok(())
}
