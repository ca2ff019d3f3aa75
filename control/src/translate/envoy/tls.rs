//! Mesh TLS for Envoy: TLS 1.3 with both certificates, nothing resumed, so that every handshake is verified anew.
//!
//! The certificate is what `tulle agent` writes in its own directory, by a file-based SDS resource that follows the files;
//! the control plane never sees the key. What peers are trusted by is the bundle, served over the same stream.

use std::collections::BTreeSet;

use tulle_runtime::names::agent;
use tulle_xds_proto::envoy::config::core::v3::{
    ApiVersion, ConfigSource, PathConfigSource, TransportSocket, WatchedDirectory, config_source,
    transport_socket,
};
use tulle_xds_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext, common_tls_context,
    downstream_tls_context, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};
use tulle_xds_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use tulle_xds_proto::google::protobuf::BoolValue;
use tulle_xds_proto::pack;

use super::super::{ROOT_CA, filter};
use crate::store::MeshSettings;

/// Calls endpoints that have one of these ids, and no other.
pub(super) fn upstream(
    mesh: &MeshSettings,
    alpn: &[u8],
    ids: &BTreeSet<String>,
) -> TransportSocket {
    // Without a matcher Envoy would take any certificate. Nobody's id ends with the slash.
    let nobody = || format!("spiffe://{}/", mesh.trust_domain);
    let mut matchers: Vec<_> = ids
        .iter()
        .map(|id| uri(MatchPattern::Exact(id.clone())))
        .collect();
    if matchers.is_empty() {
        matchers.push(uri(MatchPattern::Exact(nobody())));
    }
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(&[alpn], matchers)),
        max_session_keys: filter::number(0),
        ..UpstreamTlsContext::default()
    };
    socket("tls", pack(&context))
}

/// Accepts any workload of the trust domain.
pub(super) fn downstream(mesh: &MeshSettings, alpn: &[&[u8]]) -> TransportSocket {
    let any = uri(MatchPattern::Prefix(format!(
        "spiffe://{}/ns/",
        mesh.trust_domain
    )));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(alpn, vec![any])),
        require_client_certificate: Some(BoolValue { value: true }),
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(
            downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true),
        ),
        ..DownstreamTlsContext::default()
    };
    socket("tls", pack(&context))
}

/// No TLS.
pub(super) fn plaintext() -> TransportSocket {
    socket("raw_buffer", pack(&RawBuffer {}))
}

fn socket(name: &str, config: tulle_xds_proto::google::protobuf::Any) -> TransportSocket {
    TransportSocket {
        name: format!("envoy.transport_sockets.{name}"),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn common(alpn: &[&[u8]], peers: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let names = alpn
        .iter()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    let own = CertificateValidationContext {
        match_typed_subject_alt_names: peers,
        ..CertificateValidationContext::default()
    };
    let roots = SdsSecretConfig {
        name: ROOT_CA.to_owned(),
        sds_config: Some(filter::ads()),
    };
    let validation = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(own),
        validation_context_sds_secret_config: Some(roots),
        ..Default::default()
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..TlsParameters::default()
        }),
        alpn_protocols: names.collect(),
        tls_certificate_sds_secret_configs: vec![certificate()],
        validation_context_type: Some(
            common_tls_context::ValidationContextType::CombinedValidationContext(validation),
        ),
        ..CommonTlsContext::default()
    }
}

fn certificate() -> SdsSecretConfig {
    let file = PathConfigSource {
        path: format!("{}/{}", agent::DIR, agent::SDS_SVID_FILE),
        watched_directory: Some(WatchedDirectory {
            path: agent::DIR.to_owned(),
            ..WatchedDirectory::default()
        }),
        ..PathConfigSource::default()
    };
    SdsSecretConfig {
        name: agent::SDS_SVID.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(
                file,
            )),
            ..ConfigSource::default()
        }),
    }
}

fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    }
}
