//! The filters that end Envoy's chains: an HTTP connection manager for one version of HTTP, or a TCP proxy.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_runtime::names::{UNPROCESSED_HEADER, alpn};
use tulle_xds_proto::envoy::config::accesslog::v3::{
    AccessLogFilter, ResponseFlagFilter, access_log_filter::FilterSpecifier,
};
use tulle_xds_proto::envoy::config::common::mutation_rules::v3::{
    HeaderMutation, header_mutation::Action,
};
use tulle_xds_proto::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, Http1ProtocolOptions, SubstitutionFormatString,
    TypedExtensionConfig, data_source::Specifier, header_value_option::HeaderAppendAction,
    substitution_format_string::Format,
};
use tulle_xds_proto::envoy::config::listener::v3::{Filter, filter};
use tulle_xds_proto::envoy::config::route::v3::RouteConfiguration;
use tulle_xds_proto::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue, filter_state_value,
};
use tulle_xds_proto::envoy::extensions::filters::http::router::v3::Router;
use tulle_xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, LocalReplyConfig, Rds, ResponseMapper,
    http_connection_manager::{
        CodecType, ForwardClientCertDetails, InternalAddressConfig, RouteSpecifier,
        ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
    },
    http_filter,
};
use tulle_xds_proto::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use tulle_xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use tulle_xds_proto::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation;
use tulle_xds_proto::google::protobuf::BoolValue;
use tulle_xds_proto::pack;

use super::super::filter::{Routes, ads, duration, tcp_proxy};
use super::super::route::Backends;
use super::{Version, access_log, stat_name};

/// How long the head of a request may take, as in our own proxy.
const REQUEST_HEAD: Duration = Duration::from_secs(30);
/// Headers that only a peer of the mesh is believed.
const VOUCHED_FOR: [&str; 2] = ["x-forwarded-for", "x-request-id"];
/// The filter state by which Envoy chooses what it offers upstream, instead of what the cluster says.
const UPSTREAM_ALPN: &str = "envoy.network.application_protocols";

/// Who speaks to a connection manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// The app, on its way out; it meant this address.
    App(SocketAddr),
    /// A peer whose certificate was verified.
    Peer,
    /// Anybody.
    Stranger,
}

/// An HTTP connection manager for one version.
pub(super) fn manager(prefix: &str, version: Version, client: Client, routes: Routes) -> Filter {
    let router = Router {
        suppress_envoy_headers: true,
        ..Router::default()
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&router))),
        ..HttpFilter::default()
    };
    let codec = match version {
        Version::Http1 => CodecType::Http1,
        Version::Http2 => CodecType::Http2,
    };
    let mut manager = HttpConnectionManager {
        codec_type: codec.into(),
        stat_prefix: stat_name(prefix),
        http_filters: vec![router],
        http_protocol_options: Some(http1(client)),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        // A stream may be silent for as long as its ends please.
        stream_idle_timeout: Some(duration(Duration::ZERO)),
        request_headers_timeout: Some(duration(REQUEST_HEAD)),
        access_log: access_log::json(),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        route_specifier: Some(specifier(routes)),
        ..HttpConnectionManager::default()
    };
    if let Client::App(_) = client {
        manager.generate_request_id = Some(BoolValue { value: false });
    } else {
        vouch(&mut manager, client);
    }
    network("http_connection_manager", pack(&manager))
}

/// Has a manager say who the client is, and believe no stranger.
fn vouch(manager: &mut HttpConnectionManager, client: Client) {
    manager.use_remote_address = Some(BoolValue { value: true });
    // Nobody's `x-envoy-` headers are obeyed.
    manager.internal_address_config = Some(InternalAddressConfig::default());
    manager.preserve_external_request_id = true;
    manager.forward_client_cert_details = ForwardClientCertDetails::SanitizeSet.into();
    manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
        uri: true,
        ..SetCurrentClientCertDetails::default()
    });
    if client == Client::Peer {
        manager.local_reply_config = Some(unprocessed());
    }
    if client == Client::Stranger {
        let remove = |name: &str| HeaderMutation {
            action: Some(Action::Remove(name.to_owned())),
        };
        let mutation = EarlyMutation {
            mutations: VOUCHED_FOR.map(remove).to_vec(),
        };
        manager.early_header_mutation_extensions = vec![TypedExtensionConfig {
            name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
            typed_config: Some(pack(&mutation)),
        }];
    }
}

/// Has a manager say that the app got nothing of the request, if it could not be reached: a peer may try it again.
fn unprocessed() -> LocalReplyConfig {
    let unreachable = AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
            flags: vec!["UF".to_owned()],
        })),
    };
    let mark = HeaderValueOption {
        header: Some(HeaderValue {
            key: UNPROCESSED_HEADER.to_owned(),
            value: "1".to_owned(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    LocalReplyConfig {
        mappers: vec![ResponseMapper {
            filter: Some(unreachable),
            headers_to_add: vec![mark],
            ..ResponseMapper::default()
        }],
        ..LocalReplyConfig::default()
    }
}

fn http1(client: Client) -> Http1ProtocolOptions {
    let host = match client {
        Client::App(address) => address.to_string(),
        Client::Peer | Client::Stranger => String::new(),
    };
    Http1ProtocolOptions {
        accept_http_10: true,
        default_host_for_http_10: host,
        enable_trailers: true,
        ..Http1ProtocolOptions::default()
    }
}

fn specifier(routes: Routes) -> RouteSpecifier {
    match routes {
        Routes::Named(route_config_name) => RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name,
        }),
        Routes::Inline(table) => RouteSpecifier::RouteConfig(RouteConfiguration {
            response_headers_to_remove: vec![UNPROCESSED_HEADER.to_owned()],
            ..*table
        }),
    }
}

/// A TCP proxy to a cluster; `by_source` hashes connections by the client's address.
pub(super) fn tcp(cluster: &str, backends: &Backends) -> Filter {
    let proxy = TcpProxy {
        access_log: access_log::json(),
        ..tcp_proxy(stat_name(cluster), backends)
    };
    network("tcp_proxy", pack(&proxy))
}

/// Has what follows in the chain offer another ALPN upstream than the cluster would.
pub(super) fn offer(protocol: &[u8]) -> Filter {
    let text = DataSource {
        specifier: Some(Specifier::InlineString(
            String::from_utf8_lossy(protocol).into_owned(),
        )),
        ..DataSource::default()
    };
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(UPSTREAM_ALPN.to_owned())),
        value: Some(filter_state_value::Value::FormatString(
            SubstitutionFormatString {
                format: Some(Format::TextFormatSource(text)),
                ..SubstitutionFormatString::default()
            },
        )),
        ..FilterStateValue::default()
    };
    let config = SetFilterState {
        on_new_connection: vec![value],
        ..SetFilterState::default()
    };
    network("set_filter_state", pack(&config))
}

/// The ALPN of opaque connections.
pub(super) fn offer_tcp() -> Filter {
    offer(alpn::TCP)
}

fn network(name: &str, config: tulle_xds_proto::google::protobuf::Any) -> Filter {
    Filter {
        name: format!("envoy.filters.network.{name}"),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}
