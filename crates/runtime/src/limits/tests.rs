//! What each limit can be, and that nothing else is read or set.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_not_said_has_a_default() {
    let env = Env::from_pairs::<&str, &str>([]);
    assert_eq!(Limits::from_env(&env), Limits::default());
    assert!(env.finish().is_ok());
}

#[test]
fn every_limit_can_be_set() {
    let env = Env::from_pairs([
        (variables::REQUEST_HEAD_TIMEOUT, "7s"),
        (variables::FIRST_REQUEST_TIMEOUT, "1s"),
        (variables::IDLE_TIMEOUT, "2s"),
        (variables::BODY_TIMEOUT, "3s"),
        (variables::BODY_RATE, "8"),
        (variables::UNREAD_TIMEOUT, "4s"),
        (variables::FLUSH_TIMEOUT, "6s"),
        (variables::TCP_IDLE_TIMEOUT, "5s"),
        (variables::MAX_CONNECTIONS, "6"),
        (variables::MAX_REQUESTS, "7"),
        (variables::MAX_HEAD, "9Ki"),
        (variables::MAX_FIELDS, "10"),
        (variables::MAX_SUBSCRIPTIONS, "11"),
        (variables::MAX_CONNECTING, "12"),
        (variables::MAX_ADMIN_CONNECTIONS, "13"),
        (variables::MAX_APP_METRICS, "1Mi"),
        (variables::MEMORY_LIMIT, "8Mi"),
        (variables::H2_MAX_STREAMS, "1"),
        (variables::H2_MAX_HEADER_LIST, "20000"),
        (variables::H2_PENDING_RESETS, "3"),
        (variables::H2_LOCAL_RESETS, "4"),
        (variables::H2_GIVEN_UP, "5"),
        (variables::H2_CONTROL_FRAMES, "6"),
        (variables::H2_STREAM_WINDOW, "70000"),
        (variables::H2_CONNECTION_WINDOW, "1Mi"),
        (variables::H2_SEND_BUFFER, "90000"),
    ]);
    let patience = Patience {
        head: 7 * SECOND,
        first_request: SECOND,
        idle: 2 * SECOND,
        body: 3 * SECOND,
        body_rate: 8,
        unread: 4 * SECOND,
        flush: 6 * SECOND,
        tcp_idle: 5 * SECOND,
    };
    let bounds = Bounds {
        connections: Some(6),
        requests: 7,
        head: 9 << 10,
        fields: 10,
        subscriptions: 11,
        connecting: 12,
        admin_connections: 13,
        app_metrics: 1 << 20,
        memory: Some(8 << 20),
    };
    let http2 = Http2 {
        max_streams: 1,
        max_header_list: 20_000,
        pending_resets: 3,
        local_resets: 4,
        given_up: 5,
        control_frames: 6,
        stream_window: 70_000,
        connection_window: 1 << 20,
        send_buffer: 90_000,
    };
    let expected = Limits {
        patience,
        bounds,
        http2,
    };
    assert_eq!(Limits::from_env(&env), expected);
    assert!(env.finish().is_ok());
}

#[test]
fn every_variable_is_read_and_one_that_makes_no_sense_is_named_with_a_remedy() {
    for variable in VARIABLES {
        let env = Env::from_pairs([(variable, "plenty")]);
        assert_eq!(Limits::from_env(&env), Limits::default());
        let error = env.finish().expect_err(variable).to_string();
        let start = format!("bad environment: {variable}=\"plenty\": use a ");
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    for (variable, value) in [
        (variables::IDLE_TIMEOUT, "0s"),
        (variables::REQUEST_HEAD_TIMEOUT, "0ms"),
        (variables::FLUSH_TIMEOUT, "1001h"),
        (variables::BODY_RATE, "-1"),
        (variables::MAX_CONNECTIONS, "0"),
        (variables::MAX_REQUESTS, "-1"),
        (variables::MAX_HEAD, "1Ki"),
        (variables::MAX_FIELDS, "0"),
        (variables::MAX_FIELDS, "40000"),
        (variables::MAX_SUBSCRIPTIONS, "0"),
        (variables::MAX_SUBSCRIPTIONS, "32001"),
        (variables::MAX_CONNECTING, "0"),
        (variables::MAX_ADMIN_CONNECTIONS, "3"),
        (variables::MAX_ADMIN_CONNECTIONS, "1001"),
        (variables::MAX_APP_METRICS, "1Ki"),
        (variables::MEMORY_LIMIT, "0"),
        (variables::H2_MAX_STREAMS, "0"),
        (variables::H2_MAX_HEADER_LIST, "1Mi"),
        (variables::H2_STREAM_WINDOW, "100"),
        (variables::H2_CONNECTION_WINDOW, "4Gi"),
        (variables::H2_SEND_BUFFER, "1Ki"),
    ] {
        let env = Env::from_pairs([(variable, value)]);
        assert_eq!(Limits::from_env(&env), Limits::default());
        let error = env.finish().expect_err(variable).to_string();
        assert!(error.contains(variable), "{error}");
    }
}

#[test]
fn bytes_are_written_as_in_kubernetes() {
    for (text, bytes) in [
        ("67108864", Some(64 << 20)),
        ("64Mi", Some(64 << 20)),
        ("1Gi", Some(1 << 30)),
        ("2k", Some(2_000)),
        ("0", Some(0)),
        ("", None),
        ("Mi", None),
        ("64m", None),
        ("-1", None),
        ("1.5Gi", None),
        ("99999999999Gi", None),
    ] {
        assert_eq!(parse_bytes(text), bytes, "{text:?}");
    }
}

#[test]
fn each_limit_has_an_annotation_of_its_own_and_nothing_else_has() {
    assert_eq!(
        annotation(variables::H2_STREAM_WINDOW),
        "limits.tulle.dev/h2-stream-window"
    );
    for variable in VARIABLES {
        assert_eq!(of_annotation(&annotation(variable)), Some(variable));
    }
    for other in [
        variables::SERVICE_ACCOUNT,
        variables::TRUST_DOMAIN,
        variables::CONTROL_ADDRESS,
        variables::XDS_NAME,
        variables::UNDISCOVERED,
        variables::MARK_SOCKETS,
    ] {
        assert_eq!(of_annotation(&annotation(other)), None, "{other}");
    }
    assert_eq!(of_annotation("limits.tulle.dev/MAX-HEAD"), None);
    assert_eq!(of_annotation("limits.tulle.dev/"), None);
}

#[test]
fn streams_that_are_opened_here_have_room_for_each_other() {
    let limits = Http2::default();
    assert_eq!(limits.streams_upstream(Way::Far), 128);
    assert_eq!(limits.streams_upstream(Way::Near), 512);
    let narrow = Http2 {
        connection_window: 65_535,
        stream_window: 100_000,
        ..limits
    };
    assert_eq!(narrow.streams_upstream(Way::Far), 1);
    let wide = Http2 {
        connection_window: (1 << 31) - 1,
        ..limits
    };
    assert_eq!(wide.streams_upstream(Way::Far), 1_000);
}
