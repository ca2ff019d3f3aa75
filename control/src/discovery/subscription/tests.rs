//! One conversation, step by step: what is owed, sent, acknowledged and refused.

mod full;

use super::replies::{MAX_ERROR_TEXT, MAX_UNACKNOWLEDGED};
use super::*;
use bytes::Bytes;

/// What exists, by name, for a subscription to look up.
#[derive(Default)]
struct Shelf(BTreeMap<Name, Arc<Encoded>>);

impl Shelf {
    fn with(names: &[&str]) -> Self {
        let mut shelf = Self::default();
        for name in names {
            shelf.put(name, name);
        }
        shelf
    }

    fn put(&mut self, name: &str, content: &str) {
        self.0.insert(name.into(), encoded(content));
    }

    fn names(&self) -> Vec<Name> {
        self.0.keys().cloned().collect()
    }

    /// All that is due now, in both phases.
    fn drain(&self, subscription: &mut Subscription) -> Option<(Vec<String>, Vec<String>)> {
        let mut seen = None::<(Vec<String>, Vec<String>)>;
        for phase in [Phase::Make, Phase::Break] {
            while let Some(batch) =
                subscription.take(phase, usize::MAX, |name, _| self.0.get(name).cloned())
            {
                let nonce = format!("n{}", subscription.unacknowledged.len());
                subscription.sent(nonce, "w".to_owned(), &batch);
                let (resources, removed) = seen.get_or_insert_default();
                resources.extend(batch.resources.iter().map(|(name, _)| name.to_string()));
                removed.extend(batch.removed.iter().map(|name| name.to_string()));
            }
        }
        seen
    }
}

fn encoded(content: &str) -> Arc<Encoded> {
    Arc::new(Encoded::new(
        ResourceType::Cluster,
        Bytes::copy_from_slice(content.as_bytes()),
    ))
}

fn subscribe(names: &[&str]) -> Ask {
    Ask {
        subscribe: names.iter().map(|name| Name::from(*name)).collect(),
        ..Ask::default()
    }
}

fn unsubscribe(names: &[&str]) -> Ask {
    Ask {
        unsubscribe: names.iter().map(|name| Name::from(*name)).collect(),
        ..Ask::default()
    }
}

fn reply(nonce: &str, error: Option<&str>) -> Ask {
    let error = error.map(str::to_owned);
    Ask {
        reply: Some(Reply {
            nonce: nonce.to_owned(),
            error,
        }),
        ..Ask::default()
    }
}

fn new(kind: ResourceType) -> Subscription {
    Subscription::new(kind, 100)
}

fn apply(subscription: &mut Subscription, shelf: &Shelf, ask: Ask) -> Verdict {
    subscription
        .apply(ask, || shelf.names())
        .expect("within the limit")
}

fn pair(resources: &[&str], removed: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some((own(resources), own(removed)))
}

fn now() -> Instant {
    Instant::now()
}

#[test]
fn every_subscribed_name_is_answered_known_or_not() {
    let shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["a", "nowhere"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &["nowhere"]));
    assert_eq!(shelf.drain(&mut subscription), None);
}

#[test]
fn subscribing_again_is_answered_again_although_nothing_changed() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Route);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
}

#[test]
fn a_name_that_does_not_exist_yet_is_remembered() {
    let mut shelf = Shelf::default();
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["later"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&[], &["later"]));
    shelf.put("later", "1");
    subscription.changed(&"later".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&["later"], &[]));
}

#[test]
fn a_touch_that_changes_no_byte_sends_nothing() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Cluster);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    subscription.changed(&"a".into(), now());
    assert_eq!(shelf.drain(&mut subscription), None);
    assert!(!subscription.is_owing());
}

#[test]
fn unsubscribed_names_are_forgotten() {
    let mut shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Cluster);
    apply(&mut subscription, &shelf, subscribe(&["a", "b"]));
    shelf.drain(&mut subscription);
    apply(&mut subscription, &shelf, unsubscribe(&["a"]));
    shelf.put("a", "2");
    shelf.put("b", "2");
    subscription.changed(&"a".into(), now());
    subscription.changed(&"b".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&["b"], &[]));
}

#[test]
fn an_empty_first_request_means_all_for_clusters_and_listeners_only() {
    let shelf = Shelf::with(&["a", "b"]);
    for kind in ResourceType::ALL {
        let mut subscription = new(kind);
        apply(&mut subscription, &shelf, Ask::default());
        let expected = if kind.supports_wildcard() {
            pair(&["a", "b"], &[])
        } else {
            None
        };
        assert_eq!(shelf.drain(&mut subscription), expected, "{kind:?}");
    }
}

#[test]
fn a_wildcard_over_nothing_is_answered_with_nothing() {
    let shelf = Shelf::default();
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["*"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&[], &[]));
    assert_eq!(shelf.drain(&mut subscription), None);
}

#[test]
fn naming_a_resource_first_means_no_wildcard_until_asked_for() {
    let mut shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    apply(&mut subscription, &shelf, Ask::default());
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
    apply(&mut subscription, &shelf, subscribe(&["*"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&["b"], &[]));
    shelf.put("c", "new");
    subscription.changed(&"c".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&["c"], &[]));
    // Without the wildcard only the explicit name is left.
    apply(&mut subscription, &shelf, unsubscribe(&["*"]));
    shelf.put("a", "2");
    shelf.put("c", "2");
    subscription.changed(&"a".into(), now());
    subscription.changed(&"c".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
}

#[test]
fn an_explicit_name_dropped_under_a_wildcard_is_answered() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["*", "a", "gone"]));
    shelf.drain(&mut subscription);
    apply(&mut subscription, &shelf, unsubscribe(&["a", "gone"]));
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &["gone"]));
}

#[test]
fn a_vanished_resource_is_removed_once() {
    let mut shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Cluster);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    shelf.0.clear();
    subscription.changed(&"a".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&[], &["a"]));
    subscription.changed(&"a".into(), now());
    assert_eq!(shelf.drain(&mut subscription), None);
}

#[test]
fn clusters_and_endpoints_are_removed_in_the_late_phase_only() {
    for kind in ResourceType::ALL {
        let mut subscription = new(kind);
        subscription
            .apply(subscribe(&["gone"]), Vec::new)
            .expect("one name");
        let early = subscription
            .take(Phase::Make, usize::MAX, |_, _| None)
            .is_some();
        let late = subscription
            .take(Phase::Break, usize::MAX, |_, _| None)
            .is_some();
        let breaks = matches!(kind, ResourceType::Cluster | ResourceType::Endpoints);
        assert_eq!((early, late), (!breaks, breaks), "{kind:?}");
    }
}

#[test]
fn a_reconnecting_client_gets_what_differs_and_loses_what_vanished() {
    let shelf = Shelf::with(&["same", "other"]);
    let versions = || {
        vec![
            ("same".into(), Some(Version::of(b"same"))),
            ("other".into(), Some(Version::of(b"older"))),
            ("gone".into(), None),
        ]
    };
    for ask in [
        subscribe(&["*"]),
        Ask::default(),
        subscribe(&["same", "other", "gone"]),
    ] {
        let mut subscription = new(ResourceType::Cluster);
        apply(
            &mut subscription,
            &shelf,
            Ask {
                initial_versions: versions(),
                ..ask
            },
        );
        assert_eq!(shelf.drain(&mut subscription), pair(&["other"], &["gone"]));
    }
}

#[test]
fn a_reconnecting_client_that_has_everything_is_told_so() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Listener);
    let initial_versions = vec![("a".into(), Some(Version::of(b"a")))];
    apply(
        &mut subscription,
        &shelf,
        Ask {
            initial_versions,
            ..subscribe(&["a"])
        },
    );
    assert_eq!(shelf.drain(&mut subscription), pair(&[], &[]));
    assert_eq!(shelf.drain(&mut subscription), None);
}

#[test]
fn a_reconnecting_client_gets_its_endpoints_even_if_it_has_them() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    let initial_versions = vec![("a".into(), Some(Version::of(b"a")))];
    apply(
        &mut subscription,
        &shelf,
        Ask {
            initial_versions,
            ..subscribe(&["a"])
        },
    );
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
}

#[test]
fn initial_versions_count_in_the_first_request_only() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Route);
    apply(&mut subscription, &shelf, subscribe(&["b"]));
    let initial_versions = vec![("a".into(), Some(Version::of(b"a")))];
    apply(
        &mut subscription,
        &shelf,
        Ask {
            initial_versions,
            ..subscribe(&["a"])
        },
    );
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &["b"]));
}

#[test]
fn of_a_clients_reason_only_the_beginning_stays_in_memory() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    let reason = "\u{e9}".repeat(1 << 20);
    apply(&mut subscription, &shelf, reply("n0", Some(&reason)));
    let kept = subscription.status.last_error.expect("a reason");
    assert_eq!(kept.len(), MAX_ERROR_TEXT);
    assert!(kept.capacity() < 2 * MAX_ERROR_TEXT, "{}", kept.capacity());
}

#[test]
fn a_refused_version_is_not_pushed_again_but_the_next_one_is() {
    let mut shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    assert_eq!(
        apply(&mut subscription, &shelf, reply("n0", Some("bad a"))),
        Verdict::Refused
    );
    let status = subscription.status();
    assert_eq!(status.last_error.as_deref(), Some("bad a"));
    assert_eq!(status.rejected, ["a"]);
    assert_eq!(status.acked_nonce, None);
    assert!(status.acknowledged.is_none() && status.refused.is_some());
    subscription.changed(&"a".into(), now());
    subscription.repeat(&"a".into());
    assert_eq!(
        shelf.drain(&mut subscription),
        None,
        "unchanged and refused"
    );
    shelf.put("a", "2");
    subscription.changed(&"a".into(), now());
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
    assert_eq!(subscription.status().rejected, Vec::<String>::new());
}

#[test]
fn an_accepted_response_is_recorded() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Listener);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    assert_eq!(subscription.status().unacknowledged, 1);
    assert_eq!(
        apply(&mut subscription, &shelf, reply("n0", None)),
        Verdict::Accepted(None)
    );
    let status = subscription.status();
    assert_eq!(
        (
            status.acked_nonce.as_deref(),
            status.acked_version.as_deref()
        ),
        (Some("n0"), Some("w"))
    );
    assert!(status.acknowledged.is_some() && status.refused.is_none());
    assert_eq!(status.unacknowledged, 0);
}

#[test]
fn a_stale_nonce_never_costs_a_subscription_change() {
    let shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Route);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    let ask = Ask {
        reply: Some(Reply {
            nonce: "of-another-stream".to_owned(),
            error: None,
        }),
        ..subscribe(&["b"])
    };
    assert_eq!(apply(&mut subscription, &shelf, ask), Verdict::Stale);
    assert_eq!(shelf.drain(&mut subscription), pair(&["b"], &[]));
}

#[test]
fn endpoints_follow_their_cluster_although_unchanged() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    shelf.drain(&mut subscription);
    subscription.repeat(&"a".into());
    subscription.repeat(&"never-subscribed".into());
    assert_eq!(shelf.drain(&mut subscription), pair(&["a"], &[]));
}

#[test]
fn a_client_that_reads_nothing_is_owed_each_name_once() {
    let mut shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Endpoints);
    apply(&mut subscription, &shelf, subscribe(&["a", "b"]));
    for round in 0..10_000 {
        shelf.put("a", &round.to_string());
        subscription.changed(&"a".into(), now());
    }
    assert_eq!(subscription.status().pending, 2);
    assert_eq!(shelf.drain(&mut subscription), pair(&["a", "b"], &[]));
}

#[test]
fn a_large_answer_is_split_and_loses_nothing() {
    let shelf = Shelf::with(&["a", "b", "c"]);
    let mut subscription = new(ResourceType::Cluster);
    apply(&mut subscription, &shelf, subscribe(&["a", "b", "c", "d"]));
    let mut rounds = Vec::new();
    while let Some(batch) = subscription.take(Phase::Break, 2 * encoded("a").size(), |name, _| {
        shelf.0.get(name).cloned()
    }) {
        rounds.push((batch.resources.len(), batch.removed.len()));
    }
    assert_eq!(rounds, [(2, 0), (1, 1)]);
}

#[test]
fn replies_that_never_come_take_bounded_memory() {
    let mut shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    apply(&mut subscription, &shelf, subscribe(&["a"]));
    for round in 0..100 {
        shelf.put("a", &round.to_string());
        subscription.changed(&"a".into(), now());
        shelf.drain(&mut subscription);
    }
    assert_eq!(subscription.status().unacknowledged, MAX_UNACKNOWLEDGED);
}

#[test]
fn too_many_names_are_refused_with_the_limit() {
    let mut subscription = Subscription::new(ResourceType::Listener, 2);
    subscription
        .apply(subscribe(&["a", "b", "b"]), Vec::new)
        .expect("two names");
    subscription
        .apply(unsubscribe(&["a"]), Vec::new)
        .expect("one name");
    subscription
        .apply(subscribe(&["c"]), Vec::new)
        .expect("two names again");
    let error = subscription
        .apply(subscribe(&["d"]), Vec::new)
        .expect_err("a third name");
    let error = error.to_string();
    assert!(
        error.starts_with("more than 2 LDS subscriptions on one stream, "),
        "{error}"
    );
}

#[test]
fn names_may_be_long_but_not_all_of_them() {
    let mut subscription = Subscription::new(ResourceType::Listener, 2);
    let [long, longer] =
        [AVERAGE_NAME + 100, AVERAGE_NAME * 2 - 1].map(|length| "a".repeat(length));
    for name in [&long, &longer] {
        subscription
            .apply(subscribe(&[name, "b"]), Vec::new)
            .expect("one is long");
        subscription
            .apply(unsubscribe(&[name]), Vec::new)
            .expect("it goes again");
    }
    let error = subscription.apply(subscribe(&[&long, &longer]), Vec::new);
    error.expect_err("all are long");
}

#[test]
fn what_a_client_came_with_and_does_not_want_leaves_no_room_behind() {
    for (kind, wanted) in [
        (ResourceType::Endpoints, "a"),
        (ResourceType::Cluster, WILDCARD),
    ] {
        let mut subscription = new(kind);
        let many = (0..50_000).map(|i| (Name::from(i.to_string()), None));
        let ask = Ask {
            subscribe: vec![wanted.into()],
            initial_versions: many.collect(),
            ..Ask::default()
        };
        subscription.apply(ask, Vec::new).expect("few are wanted");
        for phase in [Phase::Make, Phase::Break] {
            while subscription.take(phase, usize::MAX, |_, _| None).is_some() {}
        }
        let room = subscription.entries.capacity();
        assert!(room <= 2 * MOST_ROOM, "{kind:?}: room for {room}");
    }
}
