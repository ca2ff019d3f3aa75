//! A request to what a pod serves, on loopback or not.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Portforwarder};
use kube::client::UpgradeConnectionError::ProtocolSwitch;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio_rustls::TlsConnector;

use super::refusal::Permission;
use super::{ANSWER, answer, nodes};
use crate::cluster::error::ClusterError;
use crate::output;

/// Longest answer that is read: the config of a sidecar that talks to thousands of services.
const MAX_ANSWER: usize = 256 << 20;

/// What answers, answers sooner; then it is seen whether its node is there.
const PROMPT: Duration = Duration::from_secs(1);
/// How long the kubelet may take to say why a stream ended.
const REASON: Duration = Duration::from_millis(200);

/// A way to one port of one pod.
pub(super) struct Reach<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) port: u16,
}

impl Reach<'_> {
    /// What it serves at a path, as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClusterError> {
        let body = self.body(path).await?;
        serde_json::from_slice(&body).map_err(|error| self.failed(format!("{path}: {error}")))
    }

    /// What it serves at a path, as text.
    pub(super) async fn text(&self, path: &str) -> Result<String, ClusterError> {
        let body = self.body(path).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn body(&self, path: &str) -> Result<Bytes, ClusterError> {
        self.in_time(self.fetch(path)).await
    }

    /// The answer, unless that takes too long, or its node turns out to be away.
    async fn in_time<T>(
        &self,
        asked: impl Future<Output = Result<T, ClusterError>>,
    ) -> Result<T, ClusterError> {
        let away = async {
            tokio::time::sleep(PROMPT).await;
            match nodes::of_pod(self.client, self.namespace, self.pod).await {
                Some((node, why)) => ClusterError::NodeAway {
                    pod: format!("{}/{}", self.namespace, self.pod),
                    node,
                    why,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = tokio::time::timeout(ANSWER, asked) => match answer {
                Ok(answer) => answer,
                Err(_) => Err(self.failed(format!("no answer within {} s", ANSWER.as_secs()))),
            },
            away = away => Err(away),
        }
    }

    /// The certificate that it shows under a name, if one who trusts these roots believes it.
    pub(super) async fn certificate(
        &self,
        roots: &[CertificateDer<'static>],
        name: &str,
    ) -> Result<CertificateDer<'static>, ClusterError> {
        self.in_time(self.shake_hands(roots, name)).await
    }

    async fn forward(&self) -> Result<Portforwarder, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let what = format!("reach pod {}/{}", self.namespace, self.pod);
        let forwarded = async {
            match api.portforward(self.pod, &[self.port]).await {
                // Its words are lost on the way.
                Err(kube::Error::UpgradeConnection(ProtocolSwitch(StatusCode::FORBIDDEN))) => {
                    Ok(Err(ClusterError::Forbidden {
                        what: what.clone(),
                        permission: Permission::to_forward(self.namespace),
                    }))
                }
                other => other.map(Ok),
            }
        };
        answer(&what, forwarded).await?
    }

    async fn shake_hands(
        &self,
        roots: &[CertificateDer<'static>],
        name: &str,
    ) -> Result<CertificateDer<'static>, ClusterError> {
        let failed = |error: &dyn std::error::Error| self.failed(output::chain(error));
        let mut trusted = RootCertStore::empty();
        trusted.add_parsable_certificates(roots.iter().cloned());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(&error))?;
        let mut forwarder = self.forward().await?;
        let stream = forwarder
            .take_stream(self.port)
            .expect("the port that was asked for");
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;
        let stream = stream.map_err(|error| failed(&error))?;
        let shown = stream.get_ref().1.peer_certificates();
        let leaf = shown.and_then(|chain| chain.first());
        leaf.map(|leaf| leaf.clone().into_owned())
            .ok_or_else(|| self.failed("it shows no certificate".to_owned()))
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, ClusterError> {
        let mut forwarder = self.forward().await?;
        let stream = forwarder
            .take_stream(self.port)
            .expect("the port that was asked for");
        let problem = forwarder.take_error(self.port).expect("once");
        let failed = |error: &dyn std::error::Error| self.failed(output::chain(error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .expect("a path of ours");
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            Ok::<_, hyper::Error>((status, body))
        };
        let mut exchange = pin!(exchange);
        let exchanged = tokio::select! {
            exchanged = &mut exchange => exchanged,
            // What has come until then is still to be read.
            _ = connection => exchange.await,
        };
        let (status, body) = match exchanged {
            Ok((status, body)) => (
                status,
                body.map_err(|error| self.failed(error.to_string()))?,
            ),
            // What the kubelet says is more than that the stream ended.
            Err(error) => {
                let reason = tokio::time::timeout(REASON, problem).await;
                return Err(self.failed(match reason {
                    Ok(Some(reason)) => reason.trim().to_owned(),
                    _ => output::chain(&error),
                }));
            }
        };
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let words = String::from_utf8_lossy(&body);
        Err(self.failed(format!("{path}: {status}: {}", words.trim())))
    }

    fn failed(&self, reason: String) -> ClusterError {
        ClusterError::Pod {
            namespace: self.namespace.to_owned(),
            pod: self.pod.to_owned(),
            port: self.port,
            reason,
        }
    }
}
