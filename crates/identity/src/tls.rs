//! rustls configurations: TLS 1.3 only, AES-128-GCM first, hybrid key exchange first, no session resumption.
//!
//! No tickets and no sessions, because a resumed connection would outlive the certificate, or the root, that it was
//! verified by.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::bundle::TrustBundle;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Svid;
use crate::verify::{Expected, Usage, verify_chain};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// The mesh's cryptography: the one provider of every TLS configuration in a process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The server name to hand to rustls between sidecars: it is not sent and not compared, ids are.
#[must_use]
pub fn mesh_server_name() -> ServerName<'static> {
    ServerName::try_from("tulle.mesh").expect("a valid DNS name")
}

/// What a server asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// An SVID of the mesh, or no connection.
    Required,
    /// An SVID of the mesh, or none at all.
    Optional,
    /// Nothing: webhooks, which the API server calls.
    None,
}

/// Client configuration that verifies the server by SPIFFE id.
pub(crate) fn client_by_id(
    svid: &Svid,
    bundle: Arc<TrustBundle>,
    ids: &[SpiffeId],
    alpn: &[u8],
) -> ClientConfig {
    let verifier = Arc::new(PeerVerifier {
        bundle,
        accept: Accept::Ids(ids.into()),
        mandatory: true,
    });
    let mut config = client_builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    config.enable_sni = false;
    finish_client(config, alpn)
}

/// Client configuration that verifies the server by DNS name, and presents an SVID if there is one.
pub(crate) fn client_by_name(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    alpn: &[u8],
) -> ClientConfig {
    let builder = client_builder().with_root_certificates(bundle.store());
    let config = match svid {
        Some(svid) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())))
        }
        None => builder.with_no_client_auth(),
    };
    finish_client(config, alpn)
}

/// Server configuration that takes clients of the given trust domains.
pub(crate) fn server(
    svid: &Svid,
    bundle: Arc<TrustBundle>,
    domains: &[TrustDomain],
    auth: ClientAuth,
    alpn: &[&[u8]],
) -> ServerConfig {
    let verifier: Arc<dyn ClientCertVerifier> = match auth {
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
        ClientAuth::Required | ClientAuth::Optional => Arc::new(PeerVerifier {
            bundle,
            accept: Accept::Domains(domains.into()),
            mandatory: auth == ClientAuth::Required,
        }),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
}

fn finish_client(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

enum Accept {
    Ids(Box<[SpiffeId]>),
    Domains(Box<[TrustDomain]>),
}

/// Verifies the other end by its SPIFFE id.
struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    accept: Accept,
    mandatory: bool,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let expected = match &self.accept {
            Accept::Ids(ids) => Expected::Ids(ids),
            Accept::Domains(domains) => Expected::Domains(domains),
        };
        verify_chain(leaf, intermediates, &self.bundle, usage, expected, now)?;
        Ok(())
    }

    fn signature(
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &PROVIDER.signature_verification_algorithms,
        )
    }

    fn schemes() -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerVerifier")
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken in the mesh".into()))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, Usage::Server, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, Usage::Client, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
