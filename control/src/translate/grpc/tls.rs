//! Mesh TLS for gRPC: certificate and roots are provider instances that the client's bootstrap defines.

use std::collections::BTreeSet;

use tulle_runtime::names::agent;
use tulle_xds_proto::envoy::config::core::v3::{TransportSocket, transport_socket};
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
    DownstreamTlsContext, UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use tulle_xds_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use tulle_xds_proto::google::protobuf::{Any, BoolValue};
use tulle_xds_proto::pack;

use crate::store::MeshSettings;

/// Calls servers that have one of these ids, and no other.
pub(super) fn upstream(mesh: &MeshSettings, ids: &BTreeSet<String>) -> TransportSocket {
    // Without a matcher any certificate would do. Nobody's id ends with the slash.
    let nobody = || format!("spiffe://{}/", mesh.trust_domain);
    let mut names: Vec<String> = ids.iter().cloned().collect();
    if names.is_empty() {
        names.push(nobody());
    }
    let exact = |name| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(name)),
        ..StringMatcher::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(names.into_iter().map(exact).collect())),
        ..UpstreamTlsContext::default()
    };
    socket(pack(&context))
}

/// Serves clients with a certificate of the mesh, and others only if they need none.
pub(super) fn downstream(require: bool) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(Vec::new())),
        require_client_certificate: Some(BoolValue { value: require }),
        ..DownstreamTlsContext::default()
    };
    socket(pack(&context))
}

#[expect(
    deprecated,
    reason = "gRPC knows no newer field for the names of a peer (gRFC A29)"
)]
fn common(match_subject_alt_names: Vec<StringMatcher>) -> CommonTlsContext {
    let instance = || {
        Some(CertificateProviderPluginInstance {
            instance_name: agent::CERTIFICATE_PROVIDER.to_owned(),
            ..CertificateProviderPluginInstance::default()
        })
    };
    CommonTlsContext {
        tls_certificate_provider_instance: instance(),
        validation_context_type: Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                ca_certificate_provider_instance: instance(),
                match_subject_alt_names,
                ..CertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

fn socket(config: Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}
