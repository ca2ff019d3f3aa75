//! Envoy's: everything comes over one ADS stream; the leaf comes from files, through SDS resources beside them.
//!
//! Only a certificate that SDS names is read again when its files change, so the cluster of the control plane names two
//! SDS files ([`secrets`]), and so may the clusters and listeners that the control plane sends.

use serde_json::{Value, json};
use tulle_runtime::names::{CONTROL_DNS_NAME, agent};

use super::{Upstream, node_id};
use crate::args::{Args, Client, Place, Variant, split_address};
use crate::files::CredentialFiles;

/// Name of the control plane's cluster.
const CONTROL: &str = "tulle-control";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3";

pub(super) fn bootstrap(
    args: &Args,
    place: &Place,
    files: &CredentialFiles,
    upstream: &Upstream,
) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let api_type = match args.xds_variant {
        Variant::Delta => "DELTA_GRPC",
        Variant::Sotw => "GRPC",
    };
    json!({
        "node": {
            "id": node_id(Client::Envoy, place),
            "cluster": format!("{}.{}", place.id.service_account(), place.id.namespace()),
        },
        "admin": { "address": { "socket_address": {
            "address": "127.0.0.1",
            "port_value": args.envoy_admin_port,
        } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": CONTROL } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": { "clusters": [control(files, upstream)] },
    })
}

/// SDS resources of the files in `dir`: name and text of each.
pub(crate) fn secrets(dir: &std::path::Path) -> Vec<(&'static str, String)> {
    let file = |name: &str| json!({ "filename": dir.join(name) });
    let secret = |name: &str, kind: &str, mut content: Value| {
        content["watched_directory"] = json!({ "path": dir });
        let resource = json!({
            "@type": format!("type.googleapis.com/{TLS}.Secret"),
            "name": name,
            kind: content,
        });
        format!("{:#}\n", json!({ "resources": [resource] }))
    };
    let svid = json!({
        "certificate_chain": file(agent::CERT),
        "private_key": file(agent::KEY),
    });
    let roots = json!({ "trusted_ca": file(agent::ROOTS) });
    vec![
        (
            agent::SDS_SVID_FILE,
            secret(agent::SDS_SVID, "tls_certificate", svid),
        ),
        (
            agent::SDS_ROOTS_FILE,
            secret(agent::SDS_ROOTS, "validation_context", roots),
        ),
    ]
}

fn control(files: &CredentialFiles, upstream: &Upstream) -> Value {
    let (kind, address) = match upstream {
        Upstream::Direct(address) => {
            let (host, port) = split_address(address).unwrap_or((address, 0));
            let kind = if host.parse::<std::net::IpAddr>().is_ok() {
                "STATIC"
            } else {
                "STRICT_DNS"
            };
            (kind, socket_address(host, port))
        }
        Upstream::Relay(address) => (
            "STATIC",
            socket_address(&address.ip().to_string(), address.port()),
        ),
        Upstream::Socket(path) => ("STATIC", json!({ "pipe": { "path": path } })),
    };
    let mut cluster = json!({
        "name": CONTROL,
        "type": kind,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": CONTROL,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                // A control plane that is gone without a word is noticed after the sum of both.
                "explicit_http_config": { "http2_protocol_options": {
                    "connection_keepalive": { "interval": "2s", "timeout": "2s" },
                } },
            },
        },
    });
    if matches!(upstream, Upstream::Direct(_)) {
        cluster["transport_socket"] = tls(files);
    }
    cluster
}

fn tls(files: &CredentialFiles) -> Value {
    let from_file = |name: &str, file: &str| {
        let source = json!({
            "path_config_source": { "path": files.path(file) },
            "resource_api_version": "V3",
        });
        json!({ "name": name, "sds_config": source })
    };
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("type.googleapis.com/{TLS}.UpstreamTlsContext"),
            "sni": CONTROL_DNS_NAME,
            "common_tls_context": {
                "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [from_file(agent::SDS_SVID, agent::SDS_SVID_FILE)],
                "combined_validation_context": {
                    "default_validation_context": { "match_typed_subject_alt_names": [
                        { "san_type": "DNS", "matcher": { "exact": CONTROL_DNS_NAME } },
                    ] },
                    "validation_context_sds_secret_config": from_file(agent::SDS_ROOTS, agent::SDS_ROOTS_FILE),
                },
            },
        },
    })
}

fn socket_address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}
