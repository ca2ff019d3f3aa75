//! Whose tokens are believed: real ones, as kubelet projects them into pods.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::Value;
use tonic::{Code, Request};
use tulle_identity::ca_client::{self, CaClientConfig, Metrics, control_channel};
use tulle_identity::{Identity, PrivateKey, SpiffeId};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::{Kubernetes, eventually};
use tulle_xds_proto::istio::auth::IstioCertificateRequest;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::plane::{Mesh, Plane, SOON};

tulle_tests::cases! { in Kubernetes:
    row_38_only_a_living_pods_own_token_for_us_is_believed ["alone"];
}

const ACCOUNT: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: web }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: thief }
"#;

const POD: &str = r#"
---
apiVersion: v1
kind: Pod
metadata: { name: NAME }
spec:
  nodeName: node0
  serviceAccountName: ACCOUNT
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: tulle.test/pause:1
    volumeMounts: [{ name: tokens, mountPath: /tokens }]
  volumes:
  - name: tokens
    projected:
      sources:
      - serviceAccountToken: { audience: tulle-ca, path: ours, expirationSeconds: 3600 }
      - serviceAccountToken: { audience: somebody-else, path: theirs }
      - serviceAccountToken: { path: api }
"#;

/// A token of a pod, where kubelet has put it.
fn token(
    kubernetes: &Kubernetes,
    pods: &Namespace<'_>,
    pod: &str,
    name: &str,
) -> anyhow::Result<String> {
    let pods = pods.get("pods")?;
    let pod = pods
        .iter()
        .find(|it| it["metadata"]["name"] == pod)
        .context("no such pod")?;
    let uid = pod["metadata"]["uid"].as_str().context("it has a uid")?;
    let volume = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/tokens");
    let mut command = kubernetes.cluster.node("node0")?.command("cat");
    let output = command.arg(Path::new(&volume).join(name)).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The same with another end, signed by the cluster's own key.
fn expired(kubernetes: &Kubernetes, token: &str) -> anyhow::Result<String> {
    let mut claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token)?;
    let kid = jsonwebtoken::decode_header(token)?.kid;
    for claim in ["exp", "iat", "nbf"] {
        let time = claims[claim].as_i64().context("a time")?;
        claims[claim] = (time - 7200).into();
    }
    let key = kubernetes
        .cluster
        .folder()
        .join("control/service-accounts.key");
    let key = EncodingKey::from_ec_pem(&std::fs::read(key)?)?;
    let header = Header {
        kid,
        ..Header::new(Algorithm::ES256)
    };
    Ok(jsonwebtoken::encode(&header, &claims, &key)?)
}

/// A workload's files.
struct Files {
    token: PathBuf,
    bundle: PathBuf,
}

/// The identity that a workload gets as a sidecar does.
fn join(plane: &Plane, files: &Files, id: &SpiffeId) -> anyhow::Result<Identity> {
    let config = CaClientConfig {
        state_dir: None,
        token_file: files.token.clone(),
        bundle_file: files.bundle.clone(),
        ..CaClientConfig::new(plane.xds.to_string(), id.clone())
    };
    plane.there(async move || {
        let tasks = Tasks::new();
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let joined = ca_client::start(config, metrics, &tasks);
        let identity = tokio::time::timeout(SOON, joined).await??;
        tasks.shutdown(Duration::from_secs(1)).await;
        Ok(identity)
    })
}

/// What the CA answers to whoever brings a token, and how soon.
fn ask(plane: &Plane, identity: &Identity, token: &str) -> anyhow::Result<(Code, Duration)> {
    let (identity, token) = (identity.clone(), token.to_owned());
    let address = plane.xds.to_string();
    plane.there(async move || {
        let channel = control_channel(&address, CONTROL_DNS_NAME, identity.clone(), None)?;
        let csr = PrivateKey::generate()?.csr(&identity.id())?;
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            ..IstioCertificateRequest::default()
        });
        let bearer = format!("Bearer {token}").parse()?;
        request.metadata_mut().insert("authorization", bearer);
        let began = Instant::now();
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = client.create_certificate(request);
        let code = answer
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok);
        Ok((code, began.elapsed()))
    })
}

async fn row_38_only_a_living_pods_own_token_for_us_is_believed(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let mesh = Mesh::begin(kubernetes).await?;
    let pods = [("web-1", "web"), ("web-2", "web"), ("thief", "thief")]
        .map(|(name, account)| POD.replace("NAME", name).replace("ACCOUNT", account));
    let manifests = format!("{ACCOUNT}{}", pods.concat());
    let pods = kubernetes.apply("tokens", &manifests).await?;
    let plane = mesh.plane("node0", &[])?;
    let bundle = eventually(SOON, async || mesh.bundle("tulle-system")).await?;
    let files = Files {
        token: mesh.dir.path().join("token"),
        bundle: mesh.dir.path().join("root.pem"),
    };
    let ours = token(kubernetes, &pods, "web-1", "ours")?;
    std::fs::write(&files.token, &ours)?;
    std::fs::write(&files.bundle, bundle)?;
    let id = SpiffeId::parse("spiffe://cluster.local/ns/tokens/sa/web")?;
    let identity = join(&plane, &files, &id)?;
    let code = |token: &str| ask(&plane, &identity, token).map(|(code, _)| code);
    ensure!(code(&ours)? == Code::Ok);
    let forged = ours
        .rsplit_once('.')
        .map(|(signed, _)| format!("{signed}.AAAA"));
    let table = [
        (
            "for somebody else",
            token(kubernetes, &pods, "web-1", "theirs")?,
        ),
        (
            "for the API server",
            token(kubernetes, &pods, "web-1", "api")?,
        ),
        (
            "of no pod",
            pods.ask(["create", "token", "web", "--audience=tulle-ca"], "")?
                .trim()
                .to_owned(),
        ),
        (
            "of another account",
            pods.ask(["create", "token", "default", "--audience=tulle-ca"], "")?
                .trim()
                .to_owned(),
        ),
        ("expired", expired(kubernetes, &ours)?),
        ("forged", forged.context("a signed token")?),
        ("none at all", "no".to_owned()),
    ];
    for (name, token) in table {
        let code = code(&token)?;
        ensure!(
            code == Code::Unauthenticated,
            "{name}: {code:?}\n{}",
            plane.said()
        );
    }

    // Replayed on the connection of somebody else, whose token it is not.
    let own = token(kubernetes, &pods, "thief", "ours")?;
    std::fs::write(&files.token, &own)?;
    let id = SpiffeId::parse("spiffe://cluster.local/ns/tokens/sa/thief")?;
    let thief = join(&plane, &files, &id)?;
    let replayed = ask(&plane, &thief, &ours)?.0;
    ensure!(replayed == Code::Unauthenticated, "{replayed:?}");
    ensure!(ask(&plane, &thief, &own)?.0 == Code::Ok);
    let stolen = pods.ask(
        [
            "create",
            "token",
            "default",
            "--audience=tulle-ca",
            "--bound-object-kind=Pod",
            "--bound-object-name=web-2",
        ],
        "",
    );
    // The API server does not even make one of another account's pod.
    ensure!(stolen.is_err(), "{stolen:?}");

    // After its pod, even before the API server's own cache forgets it.
    let other = token(kubernetes, &pods, "web-2", "ours")?;
    ensure!(code(&other)? == Code::Ok);
    pods.ask(["delete", "pod", "web-2", "--wait=true"], "")?;
    let deleted = Instant::now();
    eventually(SOON, async || {
        let code = code(&other)?;
        ensure!(code == Code::Unauthenticated, "{code:?}");
        Ok(())
    })
    .await?;
    let took = deleted.elapsed();
    ensure!(
        took < Duration::from_secs(10),
        "a deleted pod's token is good for {took:?}"
    );

    // Without an API server nobody new is let in, and nobody is told that he never will be.
    let fresh = token(kubernetes, &pods, "web-1", "ours")?;
    let waiting = super::plane::Frozen::api_server(kubernetes)?;
    eventually(Duration::from_secs(20), async || {
        let (code, took) = ask(&plane, &identity, &fresh)?;
        ensure!(took < Duration::from_secs(11), "an answer after {took:?}");
        ensure!(code == Code::Unavailable, "{code:?}");
        Ok(())
    })
    .await?;
    let status = plane.admin("GET", "/ca")?;
    ensure!(status.starts_with("HTTP/1.1 200"), "{status}");
    drop(waiting);
    eventually(SOON, async || {
        let code = ask(&plane, &identity, &fresh)?.0;
        ensure!(code == Code::Ok, "{code:?}");
        Ok(())
    })
    .await
}
