//! What a server may send of one type, and what is kept and said of it.

use tulle_xds_proto::ResourceType;

use super::*;

const KIND: ResourceType = ResourceType::Cluster;

impl Weight for () {
    fn weight(&self) -> usize {
        0
    }
}

/// Decodes nothing: what begins with `bad` is bad.
fn decode(_: &str, any: &Any) -> Result<(), DecodeError> {
    if any.type_url != KIND.type_url() || any.value.starts_with(b"bad") {
        return Err(DecodeError::missing("field", "send it"));
    }
    Ok(())
}

fn resource(name: &str, value: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any {
            type_url: KIND.type_url().to_owned(),
            value: value.into(),
        }),
        ..Resource::default()
    }
}

fn response(resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: KIND.type_url().to_owned(),
        nonce: "n".to_owned(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

/// A tracker that has said hello.
fn tracker() -> Tracker<()> {
    let mut tracker = Tracker::new(KIND, true);
    tracker.next_request(true).expect("it asks for everything");
    tracker
}

#[test]
fn what_would_become_too_much_is_refused_before_it_is_read() {
    let empty = |many: usize| {
        let mut resource = resource("a", "");
        if let Some(any) = &mut resource.resource {
            // A field of two bytes, which may be a kilobyte once it is read.
            any.value = [0x1a, 0].repeat(many);
        }
        resource
    };
    let mut tracker = tracker();
    tracker.apply(response(vec![empty(60_000)]), decode);
    assert_eq!(reason(&mut tracker), "");
    let not_read = |_: &str, _: &Any| panic!("it must not be read");
    tracker.apply(response(vec![empty(70_000)]), not_read);
    let reason = reason(&mut tracker);
    assert!(reason.contains("more parts"), "{reason}");
    assert!(tracker.known("a").is_some(), "the last good one stays");
}

/// The reason of the next NACK; empty for an ACK.
fn reason(tracker: &mut Tracker<()>) -> String {
    let request = tracker.next_request(true).expect("it answers");
    request
        .error_detail
        .map(|status| status.message)
        .unwrap_or_default()
}

#[test]
fn row_39_refusals_name_the_resource_and_leave_the_others_alone() {
    type Row = (
        &'static str,
        Vec<Resource>,
        &'static str,
        &'static [&'static str],
    );
    let mut mistyped = resource("a", "x");
    mistyped.resource.as_mut().expect("it has one").type_url = "evil/Type".to_owned();
    let mut heartbeat = resource("a", "");
    heartbeat.resource = None;
    let rows: [Row; 8] = [
        (
            "good",
            vec![resource("a", "x"), resource("b", "x")],
            "",
            &["a", "b"],
        ),
        (
            "one bad",
            vec![resource("a", "bad"), resource("b", "x")],
            "a: field",
            &["b"],
        ),
        (
            "unnamed",
            vec![resource("", "x"), resource("b", "x")],
            "(unnamed): name",
            &["b"],
        ),
        (
            "twice the same",
            vec![resource("a", "x"), resource("a", "x")],
            "",
            &["a"],
        ),
        (
            "twice, differently",
            vec![resource("a", "x"), resource("a", "y")],
            "a: name: \"a\"",
            &["a"],
        ),
        (
            "of another type",
            vec![mistyped, resource("b", "x")],
            "a: field",
            &["b"],
        ),
        ("a heartbeat", vec![heartbeat], "", &[]),
        ("nothing", vec![], "", &[]),
    ];
    for (name, resources, expected, kept) in rows {
        let mut tracker = tracker();
        tracker.apply(response(resources), decode);
        let reason = reason(&mut tracker);
        assert!(
            reason.starts_with(expected) && reason.is_empty() == expected.is_empty(),
            "{name}: {reason}"
        );
        for candidate in ["a", "b", ""] {
            let is_kept = tracker.known(candidate).is_some();
            assert_eq!(is_kept, kept.contains(&candidate), "{name}: {candidate:?}");
        }
        assert!(!tracker.has_request(true), "{name}: one answer is enough");
    }
}

#[test]
fn a_known_resource_under_another_type_is_not_taken_for_unchanged() {
    let mut tracker = tracker();
    tracker.apply(response(vec![resource("a", "x")]), decode);
    assert_eq!(reason(&mut tracker), "");
    let mut mistyped = resource("a", "x");
    mistyped.resource.as_mut().expect("it has one").type_url = "evil/Type".to_owned();
    tracker.apply(response(vec![mistyped]), decode);
    assert!(reason(&mut tracker).starts_with("a: field"));
    assert!(tracker.known("a").is_some());
}

#[test]
fn reasons_and_names_in_them_are_bounded() {
    let mut tracker = tracker();
    let long = "n".repeat(1_000_000);
    let many = (0..100).map(|n| resource(&format!("{n}{long}"), "bad"));
    let applied = tracker.apply(response(many.collect()), decode);
    assert!(applied.rejected.iter().all(|(name, _)| name.len() < 300));
    let reason = reason(&mut tracker);
    assert!(reason.len() < MAX_REASON + 100, "{}", reason.len());
    assert!(
        reason.starts_with("0nnn") && reason.ends_with("; and 84 more"),
        "{reason}"
    );
}

#[test]
fn shortened_texts_end_between_characters() {
    assert_eq!(shortened("short", 5), "short");
    assert_eq!(shortened("longer", 5), "longe...");
    assert_eq!(shortened("né", 2), "n...");
}

#[test]
fn more_resources_or_bytes_than_are_kept_are_refused_until_there_is_room() {
    let mut tracker = tracker();
    let all = (0..MAX_RESOURCES).map(|n| resource(&n.to_string(), "x"));
    tracker.apply(response(all.collect()), decode);
    assert_eq!(reason(&mut tracker), "");
    tracker.apply(
        response(vec![resource("more", "x"), resource("7", "y")]),
        decode,
    );
    let refused = reason(&mut tracker);
    assert!(
        refused.starts_with("more: ") && refused.contains("at most 32768"),
        "{refused}"
    );
    let mut removal = response(vec![]);
    removal.removed_resources = vec!["7".to_owned()];
    tracker.apply(removal, decode);
    assert_eq!(reason(&mut tracker), "");
    tracker.apply(response(vec![resource("more", "x")]), decode);
    assert_eq!(reason(&mut tracker), "");

    let mut tracker = self::tracker();
    // What has a place already is looked at even where there is no room for more.
    let half = "x".repeat(MAX_BYTES / 2 + 1);
    tracker.apply(response(vec![resource("a", &half)]), decode);
    assert_eq!(reason(&mut tracker), "");
    tracker.apply(response(vec![resource("b", &half)]), decode);
    assert!(reason(&mut tracker).starts_with("b: "));
    // A smaller version of what is there makes room.
    tracker.apply(response(vec![resource("a", "x")]), decode);
    assert_eq!(reason(&mut tracker), "");
    tracker.apply(response(vec![resource("b", &half)]), decode);
    assert_eq!(reason(&mut tracker), "");
}

#[test]
fn a_server_that_takes_no_acknowledgements_is_not_listened_to() {
    let mut tracker = tracker();
    for _ in 0..MAX_ACKS {
        assert!(!tracker.is_full());
        tracker.apply(response(vec![]), decode);
    }
    assert!(tracker.is_full());
    assert!(!tracker.has_request(false), "held back");
    tracker.next_request(true).expect("an ACK");
    assert!(!tracker.is_full());

    let mut tracker = self::tracker();
    let mut heavy = response(vec![]);
    heavy.nonce = "n".repeat(MAX_ACK_BYTES);
    tracker.apply(heavy, decode);
    assert!(tracker.is_full());
    tracker.next_request(true).expect("an ACK");
    assert!(!tracker.is_full());
    assert_eq!(tracker.ack_bytes, 0);
}

/// As long as a lifetime may be here.
const LIFE: std::time::Duration = std::time::Duration::from_secs(60);

fn living(name: &str, value: &str) -> Resource {
    let seconds = i64::try_from(LIFE.as_secs()).expect("not so long");
    Resource {
        ttl: Some(tulle_xds_proto::google::protobuf::Duration { seconds, nanos: 0 }),
        ..resource(name, value)
    }
}

fn heartbeat(name: &str, version: &str) -> Resource {
    Resource {
        version: version.to_owned(),
        resource: None,
        ..living(name, "")
    }
}

/// A tracker that asks by name, with one resource that has expired.
fn expired() -> Tracker<()> {
    let mut tracker = Tracker::new(KIND, false);
    tracker.want(&"a".into());
    tracker.next_request(true).expect("it asks");
    tracker.apply(response(vec![living("a", "good")]), decode);
    let applied = tracker.expire(Instant::now() + LIFE);
    assert_eq!(applied.changed, ["a".into()]);
    assert!(tracker.known("a").is_none());
    assert_eq!(reason(&mut tracker), "");
    tracker
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_comes_too_late_restores_what_it_is_about() {
    let mut tracker = expired();
    let applied = tracker.apply(response(vec![heartbeat("a", "1")]), decode);
    assert_eq!(applied.changed, ["a".into()]);
    assert!(tracker.known("a").is_some());
    let request = tracker.next_request(true).expect("an ACK");
    assert!(request.resource_names_subscribe.is_empty());
    assert!(tracker.expires().is_some(), "for as long as it says");
    assert_eq!(tracker.expire(Instant::now() + LIFE).changed, ["a".into()]);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_of_another_version_asks_for_what_it_is_about() {
    let mut tracker = expired();
    let applied = tracker.apply(response(vec![heartbeat("a", "2")]), decode);
    assert!(applied.changed.is_empty());
    assert!(tracker.known("a").is_none());
    let request = tracker.next_request(true).expect("an ACK");
    assert_eq!(request.resource_names_subscribe, ["a"]);
    // And so does one of what its server has taken away or sent a bad version of since.
    for since in [
        DeltaDiscoveryResponse {
            removed_resources: vec!["a".to_owned()],
            ..response(Vec::new())
        },
        response(vec![living("a", "bad")]),
    ] {
        let mut tracker = expired();
        tracker.apply(since, decode);
        tracker.apply(response(vec![heartbeat("a", "1")]), decode);
        assert!(tracker.known("a").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_makes_room() {
    let mut tracker = tracker();
    let half = "x".repeat(MAX_BYTES / 2);
    for name in ["a", "b"] {
        tracker.apply(response(vec![living(name, &half)]), decode);
        assert_eq!(reason(&mut tracker), "");
    }
    tracker.apply(response(vec![living("c", "little")]), decode);
    assert!(reason(&mut tracker).contains("send less"));
    assert_eq!(tracker.expire(Instant::now() + LIFE).changed.len(), 2);
    assert_eq!(tracker.bytes, MAX_BYTES, "it is kept");
    tracker.apply(response(vec![living("c", "little")]), decode);
    assert_eq!(reason(&mut tracker), "");
    assert_eq!(tracker.bytes, "little".len());
    assert_eq!((tracker.len(), tracker.expired), (1, 0));
    tracker.apply(response(vec![heartbeat("a", "1")]), decode);
    assert!(tracker.known("a").is_none(), "it is not kept any more");
}
