//! A TLS handshake without a client certificate: who answers, and whether it lets such a client in.
//!
//! In TLS 1.3 the client is done before the server has looked at its certificate, so the refusal comes as an alert
//! after the handshake: it shows at the first read.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Reply;
use crate::app::target::Target;
use crate::output;

/// How long a server may take to refuse; one that wants to hear more first is not refusing.
const REFUSAL: Duration = Duration::from_millis(500);

/// What a handshake without a client certificate shows.
#[derive(Debug)]
pub(super) struct Look {
    /// What the server presented, its own certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Why it did not let the client in.
    pub(super) refusal: Option<String>,
}

pub(super) async fn probe(stream: TcpStream, target: &Target, alpn: &str) -> Reply {
    let Look { chain, refusal } = look(stream, target, alpn).await;
    let identities = chain.first().map(names).unwrap_or_default();
    let peer = if identities.is_empty() {
        "nobody".to_owned()
    } else {
        identities.join(", ")
    };
    let verdict = match &refusal {
        Some(reason) => format!("refused: {reason}"),
        None => "accepted a client without a certificate".to_owned(),
    };
    Reply {
        success: refusal.is_none(),
        text: format!("server: {peer}\n{verdict}\n"),
        json: json!({ "server": identities, "refused": refusal.is_some(), "reason": refusal }),
    }
}

/// Shakes hands and waits whether the server refuses.
pub(super) async fn look(stream: TcpStream, target: &Target, alpn: &str) -> Look {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let refusal = handshake(stream, target, alpn, seen.clone()).await.err();
    let chain = std::mem::take(&mut *seen.lock());
    Look { chain, refusal }
}

async fn handshake(
    stream: TcpStream,
    target: &Target,
    alpn: &str,
    seen: Arc<parking_lot::Mutex<Vec<CertificateDer<'static>>>>,
) -> Result<(), String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Onlooker {
        provider: provider.clone(),
        seen,
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| output::chain(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let name = ServerName::try_from(target.host.clone()).map_err(|error| output::chain(&error))?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = connecting.await.map_err(|error| output::chain(&error))?;
    match tokio::time::timeout(REFUSAL, stream.read(&mut [0])).await {
        Ok(Err(error)) => Err(output::chain(&error)),
        Ok(Ok(0)) => Err("the server closed the connection".to_owned()),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Believes any certificate and keeps it: nothing is ever sent to the server, so nothing is at stake.
#[derive(Debug)]
struct Onlooker {
    provider: Arc<CryptoProvider>,
    seen: Arc<parking_lot::Mutex<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock() = presented.map(|one| one.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The names that a certificate carries: URIs such as SPIFFE ids, and DNS names.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
    names.collect()
}
