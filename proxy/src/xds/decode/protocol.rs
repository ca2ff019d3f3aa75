//! Which version of HTTP a cluster's endpoints are spoken to.

use tulle_xds_proto::envoy::config::cluster::v3 as pb;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};

use super::error::{At, DecodeError, refuse, unpack};
use crate::config::cluster::UpstreamHttp;

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Without a word about it, the client's version is spoken: whoever does not declare a protocol may be spoken to in
/// either.
pub(super) fn upstream_http(message: &pb::Cluster) -> Result<UpstreamHttp, DecodeError> {
    let Some(any) = message.typed_extension_protocol_options.get(OPTIONS) else {
        return Ok(legacy(message));
    };
    let field = format!("typed_extension_protocol_options[{OPTIONS:?}]");
    let options = unpack::<HttpProtocolOptions>(any);
    options.and_then(|options| decode(&options)).at(field)
}

fn decode(options: &HttpProtocolOptions) -> Result<UpstreamHttp, DecodeError> {
    let filters = !options.http_filters.is_empty();
    refuse(filters, "http_filters", "remove them")?;
    let mirrors = !options.request_mirror_policies.is_empty();
    refuse(mirrors, "request_mirror_policies", "remove them")?;
    let field = "upstream_protocol_options";
    let remedy =
        "use use_downstream_protocol_config, or explicit_http_config with HTTP/1 or HTTP/2";
    match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
            Ok(UpstreamHttp::Downstream)
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(UpstreamHttp::Http1),
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(UpstreamHttp::Http2),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    let value = "explicit_http_config.http3_protocol_options";
                    Err(DecodeError::invalid(field, value, remedy))
                }
                None => Err(DecodeError::missing("explicit_http_config", remedy)),
            }
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            Err(DecodeError::invalid(field, "auto_config", remedy))
        }
        None => Err(DecodeError::missing(field, remedy)),
    }
}

#[expect(
    deprecated,
    reason = "foreign control planes still send the older forms"
)]
fn legacy(message: &pb::Cluster) -> UpstreamHttp {
    let downstream = ClusterProtocolSelection::UseDownstreamProtocol as i32;
    if message.http2_protocol_options.is_some() && message.protocol_selection != downstream {
        UpstreamHttp::Http2
    } else {
        UpstreamHttp::Downstream
    }
}
