//! The state-of-the-world variant.

use super::*;

/// A request of the state-of-the-world variant; `false` if it was stale.
fn restate(
    subscription: &mut Subscription,
    shelf: &Shelf,
    names: &[&str],
    nonce: Option<&str>,
) -> bool {
    let reply = nonce.map(|nonce| Reply {
        nonce: nonce.to_owned(),
        error: None,
    });
    let names = names.iter().map(|name| Name::from(*name)).collect();
    let Some(ask) = subscription.restate(names, reply) else {
        return false;
    };
    apply(subscription, shelf, ask);
    true
}

/// All that is due in the state-of-the-world variant, as one list a response.
fn drain_full(subscription: &mut Subscription, shelf: &Shelf) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for phase in [Phase::Make, Phase::Break] {
        while let Some(batch) =
            subscription.take_full(phase, usize::MAX, |name, _| shelf.0.get(name).cloned())
        {
            subscription.sent(format!("f{}", seen.len()), "w".to_owned(), &batch);
            seen.push(
                batch
                    .resources
                    .iter()
                    .map(|(name, _)| name.to_string())
                    .collect(),
            );
        }
    }
    seen
}

#[test]
fn full_naming_nothing_means_all_until_something_was_named() {
    let shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Cluster);
    restate(&mut subscription, &shelf, &[], None);
    assert_eq!(drain_full(&mut subscription, &shelf), [["a", "b"]]);
    restate(&mut subscription, &shelf, &[], Some("f0"));
    assert!(
        drain_full(&mut subscription, &shelf).is_empty(),
        "an acknowledgement is not answered"
    );
    restate(&mut subscription, &shelf, &["a"], Some("f0"));
    assert_eq!(drain_full(&mut subscription, &shelf), [["a"]]);
    restate(&mut subscription, &shelf, &[], Some("f0"));
    assert_eq!(subscription.status().subscribed, 0);
    assert!(!subscription.is_wildcard());
}

#[test]
fn full_clusters_are_listed_whole_so_that_absence_is_removal() {
    let mut shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Cluster);
    restate(&mut subscription, &shelf, &["*"], None);
    drain_full(&mut subscription, &shelf);
    shelf.0.remove("a");
    subscription.changed(&"a".into(), now());
    assert_eq!(drain_full(&mut subscription, &shelf), [["b"]]);
    shelf.put("c", "new");
    subscription.changed(&"c".into(), now());
    assert_eq!(drain_full(&mut subscription, &shelf), [["b", "c"]]);
    shelf.0.clear();
    subscription.changed(&"b".into(), now());
    subscription.changed(&"c".into(), now());
    assert_eq!(
        drain_full(&mut subscription, &shelf),
        [Vec::<String>::new()],
        "an empty list removes all"
    );
}

#[test]
fn full_endpoints_are_sent_one_by_one_and_never_removed() {
    let mut shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Endpoints);
    restate(&mut subscription, &shelf, &["a"], None);
    assert_eq!(drain_full(&mut subscription, &shelf), [["a"]]);
    restate(
        &mut subscription,
        &shelf,
        &["a", "b", "nowhere"],
        Some("f0"),
    );
    assert_eq!(
        drain_full(&mut subscription, &shelf),
        [["b"]],
        "what was added is answered, known or not"
    );
    restate(&mut subscription, &shelf, &["b"], Some("f0"));
    assert!(
        drain_full(&mut subscription, &shelf).is_empty(),
        "a removal is not answered"
    );
    shelf.0.remove("b");
    subscription.changed(&"b".into(), now());
    assert!(drain_full(&mut subscription, &shelf).is_empty());
}

#[test]
fn full_requests_about_an_older_response_are_ignored() {
    let shelf = Shelf::with(&["a", "b"]);
    let mut subscription = new(ResourceType::Endpoints);
    restate(&mut subscription, &shelf, &["a"], None);
    drain_full(&mut subscription, &shelf);
    assert!(!restate(
        &mut subscription,
        &shelf,
        &["a", "b"],
        Some("older")
    ));
    assert!(!subscription.is_owing());
    assert!(restate(&mut subscription, &shelf, &["a", "b"], Some("f0")));
    assert!(subscription.is_owing());
}

#[test]
fn full_nonces_of_another_stream_cost_no_first_request() {
    let shelf = Shelf::with(&["a"]);
    let mut subscription = new(ResourceType::Endpoints);
    assert!(restate(
        &mut subscription,
        &shelf,
        &["a"],
        Some("of-another-stream")
    ));
    assert_eq!(drain_full(&mut subscription, &shelf), [["a"]]);
    assert!(!restate(
        &mut subscription,
        &shelf,
        &[],
        Some("of-another-stream")
    ));
}

#[test]
fn full_lists_that_are_refused_blame_what_was_new_and_the_next_that_is_accepted_clears_it() {
    let mut shelf = Shelf::with(&["a", "b", "c"]);
    let mut subscription = new(ResourceType::Cluster);
    restate(&mut subscription, &shelf, &[], None);
    drain_full(&mut subscription, &shelf);
    let refuse = |subscription: &mut Subscription, error: Option<&str>| {
        let nonce = subscription
            .status()
            .sent_nonce
            .expect("something was sent");
        let error = error.map(str::to_owned);
        let ask = subscription.restate(Vec::new(), Some(Reply { nonce, error }));
        subscription
            .apply(ask.expect("it is the last one"), Vec::new)
            .expect("no names");
        subscription.status().rejected
    };
    assert!(refuse(&mut subscription, None).is_empty());
    for (name, rejected) in [("b", &["b"][..]), ("c", &["b", "c"])] {
        shelf.put(name, "bad");
        subscription.changed(&name.into(), now());
        assert_eq!(drain_full(&mut subscription, &shelf), [["a", "b", "c"]]);
        assert_eq!(refuse(&mut subscription, Some("no")), rejected);
    }
    // `b` is mended, and `c` was never the fault.
    shelf.put("b", "good");
    subscription.changed(&"b".into(), now());
    drain_full(&mut subscription, &shelf);
    assert!(refuse(&mut subscription, None).is_empty());
    assert_eq!(subscription.status().last_error, None);
}
