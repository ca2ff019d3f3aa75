//! The access log: JSON on standard output, with the keys of our own proxy's and two more, the peers' identities.

use prost::Message;
use tulle_xds_proto::envoy::config::accesslog::v3::{AccessLog, access_log};
use tulle_xds_proto::envoy::config::core::v3::{
    SubstitutionFormatString, substitution_format_string::Format,
};
use tulle_xds_proto::envoy::extensions::access_loggers::stream::v3::{
    StdoutAccessLog, stdout_access_log::AccessLogFormat,
};
use tulle_xds_proto::google::protobuf::{Any, Struct, Value, value::Kind};
use tulle_xds_proto::prost::{self, Name};

const FIELDS: [(&str, &str); 25] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESPONSE_DURATION%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("downstream_peer", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("upstream_peer", "%UPSTREAM_PEER_URI_SAN%"),
];

/// One line a request, or a connection that carries none.
pub(super) fn json() -> Vec<AccessLog> {
    // Encoded messages that follow each other are merged by whoever reads them, so this is one log with all the fields, in
    // an order that a map of them would not have.
    let value = FIELDS
        .iter()
        .flat_map(|field| log_of(field).encode_to_vec());
    let config = Any {
        type_url: format!("type.googleapis.com/{}", StdoutAccessLog::full_name()),
        value: value.collect(),
    };
    vec![AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..AccessLog::default()
    }]
}

fn log_of((name, command): &(&str, &str)) -> StdoutAccessLog {
    let value = Value {
        kind: Some(Kind::StringValue((*command).to_owned())),
    };
    let fields = [((*name).to_owned(), value)].into_iter().collect();
    let format = SubstitutionFormatString {
        format: Some(Format::JsonFormat(Struct { fields })),
        ..SubstitutionFormatString::default()
    };
    StdoutAccessLog {
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_one_message_with_all_fields_and_always_the_same_bytes() {
        let [log] = json().try_into().expect("one log");
        assert_eq!(json(), vec![log.clone()]);
        let Some(access_log::ConfigType::TypedConfig(any)) = log.config_type else {
            panic!("no config: {log:?}");
        };
        let log: StdoutAccessLog = tulle_xds_proto::unpack(&any).expect("such a message");
        let Some(AccessLogFormat::LogFormat(format)) = log.access_log_format else {
            panic!("no format: {log:?}");
        };
        let Some(Format::JsonFormat(json)) = format.format else {
            panic!("not JSON: {format:?}");
        };
        let mut names: Vec<_> = json.fields.keys().map(String::as_str).collect();
        let mut expected = FIELDS.map(|(name, _)| name).to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
